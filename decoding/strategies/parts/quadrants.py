"""entropix's sampler (xjdr-alt/entropix, its last four-quadrant version): sampling parameters out of uncertainty.

    H, V: entropy and varentropy of softmax(z), in bits. Of the last layer's attention of the last query: aH mean and
    aV variance of the heads' entropies, agreement = mean |A - mean_heads A|, interaction = mean |scores|

    H low,  V low     take the best                 H below high, V high   try forks: warmer, more candidates
    H high, V low     think, else a little warmer   H medium, V high       resample: hot, tighter nucleus
    otherwise         adaptive: everything moves with the metrics; the likeliest of several draws

Pure functions; what they decide is done by `strategies/entropix.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from decoding.contract.params import Entropix, LogitsParams
from decoding.logits.step import EXCLUDED


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention metrics, all 0 where attention is left out."""

    entropy: float = 0.0
    varentropy: float = 0.0
    agreement: float = 0.0
    interaction: float = 0.0


@dataclass(frozen=True, slots=True)
class Metrics:
    entropy: float
    varentropy: float
    attention: Attention = Attention()


class Quadrant(Enum):
    CERTAIN = "certain"
    THINKING = "thinking"
    FORKING = "forking"
    RESAMPLING = "resampling"
    ADAPTIVE = "adaptive"


@dataclass(frozen=True, slots=True)
class Settings:
    """The sampling parameters of one step."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float


def attention_metrics(scores: torch.Tensor) -> Attention:
    """scores: the last layer's scaled pre-softmax scores of the last query, [heads, keys]; -inf hides a key."""
    scores = scores[:, scores.isfinite().all(dim=0)].double()
    weights = scores.softmax(dim=-1)
    entropies = -(weights * weights.clamp(min=1e-10).log2()).sum(dim=-1)  # [heads]
    return Attention(
        entropy=float(entropies.mean()),
        varentropy=float(entropies.var(correction=0)),
        agreement=float((weights - weights.mean(dim=0)).abs().mean()),
        interaction=float(scores.abs().mean()),
    )


def quadrant(m: Metrics, params: Entropix) -> Quadrant:
    """The first that fits, in the reference's order."""
    h, v = m.entropy, m.varentropy
    if h < params.low_entropy and v < params.low_varentropy:
        return Quadrant.CERTAIN
    if h > params.high_entropy and v < params.low_varentropy:
        return Quadrant.THINKING
    if h < params.high_entropy and v > params.high_varentropy:
        return Quadrant.FORKING
    if h > params.medium_entropy and v > params.high_varentropy:
        return Quadrant.RESAMPLING
    return Quadrant.ADAPTIVE


def settings(where: Quadrant, m: Metrics, params: Entropix) -> Settings | None:
    """How to sample there; None: not at all, the best token is taken."""
    t, top_p, top_k, min_p, a = params.temperature, params.top_p, params.top_k, params.min_p, m.attention
    match where:
        case Quadrant.CERTAIN:
            return None
        case Quadrant.THINKING:
            return Settings(min(1.5, t * (1.3 + 0.2 * a.entropy)), top_p, top_k, min_p)
        case Quadrant.FORKING:
            wider = max(5, int(top_k * (1 + 0.5 * (1 - a.agreement))))
            return Settings(min(1.5, t * (1.2 + 0.3 * a.interaction)), top_p, wider, min_p)
        case Quadrant.RESAMPLING:
            tighter = max(0.5, top_p - 0.2 * a.entropy)
            return Settings(max(2.0, t * (2 + 0.5 * a.varentropy)), tighter, top_k, min_p)
        case Quadrant.ADAPTIVE:
            return _adaptive(m, params)


def _adaptive(m: Metrics, params: Entropix) -> Settings:
    a = m.attention
    uncertainty, attention = m.entropy + m.varentropy, a.entropy + a.varentropy
    return Settings(
        temperature=params.temperature * (1 + 0.3 * uncertainty + 0.2 * attention - 0.2 * a.agreement),
        top_p=_clip(params.top_p * (1 + 0.1 * a.varentropy), 0.1, 1.0),
        top_k=int(_clip(round(params.top_k * (1 + 0.3 * a.interaction - 0.2 * a.agreement)), 1, 100)),
        min_p=_clip(params.min_p * (1 - 0.5 * uncertainty), 0.01, 0.5),
    )


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def filtered(z: torch.Tensor, s: Settings, *, is_compat: bool) -> torch.Tensor:
    """z [vocab] -> scores [vocab] to draw from: temperature, min-p, the k best, of these the nucleus; the rest -inf.

    is_compat reproduces two slips of the reference: min-p has no effect, and the mass of the nucleus is counted from
    the least likely of the k upwards, so that it loses its head instead of its tail.
    """
    scores = z / max(s.temperature, LogitsParams.GREEDY_BELOW)
    p = scores.double().softmax(dim=-1)
    if s.min_p and not is_compat:
        p = p.masked_fill(p < s.min_p * p.max(), 0.0)
        p /= p.sum()
    order = p.sort(descending=True, stable=True)
    ids, mass = order.indices[: s.top_k], order.values[: s.top_k]
    if is_compat:
        ids, mass = ids.flip(0), mass.flip(0)
    is_kept = (mass.cumsum(dim=0) - mass <= s.top_p) & (mass > 0)
    kept = torch.full_like(scores, EXCLUDED)
    kept[ids[is_kept]] = scores[ids[is_kept]]
    return kept

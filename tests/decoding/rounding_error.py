"""How far apart results may be that differ in nothing but rounding, from arithmetic.

A tolerance that was read off one machine holds on that machine. All are for float32 unless they are told otherwise, and
of one result against the exact one: two that are both rounded may be twice as far apart.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch.nn import functional as F

Run = Callable[[Any], torch.Tensor]
"""From a model to what it says."""
Rounding = Callable[[torch.Tensor], torch.Tensor | float]
"""From rows [..., width] to the relative errors of sums over them [..., 1]."""
EPS = torch.finfo(torch.float32).eps

SMOLLM2_LOGPROB = 1e-3
"""How far apart two float32 log-probs of tokens that SmolLM2-135M says itself may be: twice the largest `of_each` over
64 recorded ones, which takes 13 seconds and 3 GB to find, rounded up.
"""
SMOLLM2_EMBEDDING = 4e-5
"""Likewise of a component of a unit vector, twice `of_model`."""


def ulp(magnitude: float) -> float:
    """From a float32 of that magnitude to the next: one rounding is off by half of it at most."""
    return 2.0 ** (math.floor(math.log2(magnitude)) - 23)


def of_sum(terms: int, eps: float = EPS) -> float:
    """Relative, of positive numbers: each addition is off by eps / 2 at most, in either direction, so they add up like
    a walk; four times its root mean square.
    """
    return 4 * eps / 2 * math.sqrt(terms)


def of_log_softmax(largest: float, vocab: int) -> float:
    """x - m - ln d, each operation rounded at the largest magnitude; what ln makes of an error of d is relative to d,
    whose terms e^(x - m) come with 2 ulps each.
    """
    return 2 * ulp(largest) / 2 + ulp(math.log(vocab)) / 2 + of_sum(vocab) + 2 * EPS


def of_entropies(entropy: float, varentropy: float, largest: float, vocab: int) -> tuple[float, float]:
    """In nats: sums of p ln p and of p (ln p + entropy)^2, in which ln p is off as log-softmax is, p relatively so."""
    logp = of_log_softmax(largest, vocab)
    share = logp + of_sum(vocab)
    h = logp + share * entropy
    return h, 2 * math.sqrt(varentropy) * (logp + h) + share * varentropy


def of_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Of x @ weight.T + bias, each element's own: as of a sum of their magnitudes, for which signs are no help."""
    return of_sum(weight.shape[1] + 1) * F.linear(x.abs(), weight.abs(), None if bias is None else bias.abs())


def of_scores(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Of scaled scores, [heads, length, dim] each: each element's own, [heads, length, length]. A soft cap, nowhere
    steeper than 1, adds nothing.
    """
    magnitudes = query.abs() @ key.abs().repeat_interleave(len(query) // len(key), 0).transpose(1, 2)
    return of_sum(query.shape[-1] + 2) * scaling * magnitudes


def of_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, bias: float = 0.0
) -> float:
    """Of all heads' outputs, [heads, length, dim] each. A weight is off, relatively, by what its score is off and by
    exp's and the sum's error; so is their total; the output's sum rounds once more.
    """
    score = float(of_scores(query, key, scaling).max()) + EPS * bias
    return (2 * (score + 2 * EPS) + 2 * of_sum(key.shape[1])) * float(value.abs().max())


def of_row(x: torch.Tensor) -> float:
    """Of a float32 sum over a row [..., width]."""
    return of_sum(x.shape[-1])


def of_model(model: torch.nn.Module, run: Run, rounding: Rounding = of_row) -> float:
    """Of what `run` reads off a float32 transformers model; the largest element decides for all."""
    return float(of_each(model, run, rounding).max())


@torch.no_grad()
def of_each(model: torch.nn.Module, run: Run, rounding: Rounding = of_row) -> torch.Tensor:
    """How far each element moves in float64 when every module's output is off as a sum of its inputs is, by `rounding`,
    relative to a row's root mean square.

    Terms are of either sign, so their sums are off by less than this, and four times as much as is usual is allowed.
    """
    exact, noisy = copy.deepcopy(model).double().eval(), copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(0)

    def round_off(module: torch.nn.Module, args: tuple[object, ...], out: object) -> object:
        is_computed = all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in (*args[:1], out))
        if not args or not is_computed:  # indices into a table, which rounds nothing
            return out
        x, y = cast(torch.Tensor, args[0]), cast(torch.Tensor, out)
        size = y.square().mean(-1, keepdim=True).sqrt()
        noise = torch.randn(y.shape, generator=generator, dtype=torch.float64)
        return y + (rounding(x) * size * noise).to(y.dtype)

    for module in noisy.modules():
        if not list(module.children()):
            module.register_forward_hook(round_off)
    right = run(exact)
    moved = [(run(noisy) - right).abs() for _ in range(4)]  # in one run a number may happen not to move
    return torch.stack(moved).amax(dim=0)


def of_divergence(divergence: float, logits: float) -> float:
    """Of sum p ln(p / q), whose logits are off by as much: each ln p by twice that, p relatively so, and
    sum p |ln(p / q)| is at most the divergence and 2 / e.
    """
    return 2 * logits * (divergence + 2 / math.e) + 4 * logits

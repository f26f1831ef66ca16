"""Two contexts in lock step: guidance towards the one and away from the other, or a temperature by their divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from decoding.contract.params.base import Choices, StrategyParams
from decoding.contract.params.declared import MAX_INT, FromText, Named, Off, Says, TokenId, Within
from decoding.contract.params.invalid import check


@dataclass(frozen=True, slots=True)
class Guided(StrategyParams):
    """Classifier-free guidance: scale * (logp_c - logp_u) + logp_u. negative_ids: the context of the second row."""

    NAME = "guided"

    # fmt: off
    scale: Annotated[
        float, Within(0, 100), Off(1), Named("guidance_scale"), Says("Classifier-free guidance; 1 is off."),
    ]
    # fmt: on
    negative_ids: Annotated[tuple[TokenId, ...], Named("negative_prompt"), FromText((0,), begins=True)]
    n: Choices = 1

    def _check(self) -> None:
        check(bool(self.negative_ids), "negative_prompt", "must hold at least one token id >= 0")

    @property
    def second_context(self) -> tuple[int, ...]:
        return self.negative_ids


@dataclass(frozen=True, slots=True)
class KlGuided(StrategyParams):
    """KL-divergence guided temperature: T = T0 * 0.5 ** (KL(p_c || p_u) / sigma).

    context_ids: the context of the second row, which lacks the source.
    """

    NAME = "kl_guided"
    WITHIN = "kl_guided"

    sigma: Annotated[float, Within(1e-6, 1e6), Says("The divergence that halves the temperature.")] = 1.0
    context_ids: Annotated[tuple[TokenId, ...], Named("kl_guided.prompt"), FromText((0,), begins=True)] = ()
    n: Choices = 1

    def _check(self) -> None:
        check(bool(self.context_ids), "kl_guided.prompt", "must hold at least one token id >= 0")

    @property
    def second_context(self) -> tuple[int, ...]:
        return self.context_ids


@dataclass(frozen=True, slots=True)
class ContextAware(StrategyParams):
    """Context-aware decoding: (1 + alpha) * logp_c - alpha * logp_u. context_ids: the prompt without its source."""

    NAME = "context_aware"
    WITHIN = "context_aware"

    # fmt: off
    context_ids: Annotated[tuple[TokenId, ...], Named("context_aware.prompt"), FromText((0,), begins=True)]
    alpha: Annotated[
        float, Within(0, 100), Says("How far the source outweighs what the model knows without it; 0 is plain."),
    ] = 0.5
    n: Choices = 1
    # fmt: on

    def _check(self) -> None:
        check(bool(self.context_ids), "context_aware.prompt", "must hold the prompt without its source")

    @property
    def second_context(self) -> tuple[int, ...]:
        return self.context_ids


@dataclass(frozen=True, slots=True)
class Pmi(StrategyParams):
    """Pointwise mutual information: logp_c - lam * logp_u, where c is unsure by tau. context_ids: as in KlGuided."""

    NAME = "pmi"
    WITHIN = "pmi"

    # fmt: off
    context_ids: Annotated[tuple[TokenId, ...], Named("pmi.prompt"), FromText((0,), begins=True)] = ()
    lam: Annotated[float, Within(0, 100), Says("How much of the other log-probs is taken away: lambda.")] = 1.0
    tau: Annotated[
        float, Within(0, MAX_INT), Says("Only where the entropy is at least so many nats; else as without."),
    ] = 0.0
    n: Choices = 1
    # fmt: on

    def _check(self) -> None:
        check(bool(self.context_ids), "pmi.prompt", "must hold at least one token id >= 0")

    @property
    def second_context(self) -> tuple[int, ...]:
        return self.context_ids

"""Two contexts in lock step: classifier-free guidance, and the temperature guided by divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from decoding.contract.params.base import Choices, StrategyParams
from decoding.contract.params.declared import FromText, Named, Off, Says, TokenId, Within
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
    def max_rows(self) -> int:
        return 2 * self.n

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
    def max_rows(self) -> int:
        return 2 * self.n

    @property
    def second_context(self) -> tuple[int, ...]:
        return self.context_ids

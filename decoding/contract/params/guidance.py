"""Two contexts in lock step: classifier-free guidance, and the temperature guided by divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from decoding.contract.params.invalid import check, check_finite


def _check_context(token_ids: tuple[int, ...], param: str) -> None:
    check(bool(token_ids) and min(token_ids) >= 0, param, "must hold at least one token id >= 0")


@dataclass(frozen=True, slots=True)
class Guided:
    """Classifier-free guidance (Sanchez et al. 2023, arXiv 2306.17806): scale * (logp_c - logp_u) + logp_u.

    negative_ids: the context of the second row; with an encoder its source.
    """

    NAME: ClassVar[str] = "guided"

    scale: float
    negative_ids: tuple[int, ...]
    n: int = 1

    def __post_init__(self) -> None:
        check(self.n >= 1, "n", "must be at least 1")
        check_finite(self.scale, "guidance_scale", low=0, high=100)
        _check_context(self.negative_ids, "negative_prompt")

    @property
    def max_rows(self) -> int:
        return 2 * self.n


@dataclass(frozen=True, slots=True)
class KlGuided:
    """KL-divergence guided temperature (Chang et al. 2023, arXiv 2306.01286): T = T0 * 0.5 ** (KL(p_c || p_u) / sigma).

    context_ids: the context of the second row, which lacks the source; with an encoder its source.
    """

    NAME: ClassVar[str] = "kl_guided"

    sigma: float
    context_ids: tuple[int, ...]
    n: int = 1

    def __post_init__(self) -> None:
        check(self.n >= 1, "n", "must be at least 1")
        check_finite(self.sigma, "kl_guided.sigma", low=1e-6)
        _check_context(self.context_ids, "kl_guided.prompt")

    @property
    def max_rows(self) -> int:
        return 2 * self.n

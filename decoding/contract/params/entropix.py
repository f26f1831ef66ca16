"""entropix: the sampler picks its own parameters from entropy and varentropy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from decoding.contract.params.invalid import check, check_finite


@dataclass(frozen=True, slots=True)
class Entropix:
    """Thresholds and factors of xjdr-alt/entropix's four-quadrant sampler (entropies in bits).

    think_token_id: injected where the model is uncertain and sure of it; None: sampled there instead.
    compat: reproduce the reference's two defects (min_p without effect, nucleus over ascending probabilities).
    uses_attention: False leaves the attention terms out.
    """

    NAME: ClassVar[str] = "entropix"

    think_token_id: int | None = None
    compat: bool = False
    uses_attention: bool = True
    temperature: float = 0.666
    top_p: float = 0.9
    top_k: int = 27
    min_p: float = 0.03
    low_entropy: float = 0.1
    low_varentropy: float = 0.1
    medium_entropy: float = 3.0
    high_entropy: float = 5.0
    high_varentropy: float = 5.0
    num_adaptive_samples: int = 5

    def __post_init__(self) -> None:
        check(
            self.think_token_id is None or self.think_token_id >= 0, "entropix.think_token_id", "must not be negative"
        )
        for name in (f.name for f in fields(self) if isinstance(getattr(self, f.name), float)):
            check_finite(getattr(self, name), f"entropix.{name}", low=0)
        check(self.top_p <= 1, "entropix.top_p", "must lie in [0, 1]")
        check(self.min_p <= 1, "entropix.min_p", "must lie in [0, 1]")
        check(1 <= self.top_k <= 100, "entropix.top_k", "must lie in [1, 100]")
        check(1 <= self.num_adaptive_samples <= 32, "entropix.num_adaptive_samples", "must lie in [1, 32]")

    @property
    def n(self) -> int:
        return 1

    @property
    def max_rows(self) -> int:
        return 1

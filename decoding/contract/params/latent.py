"""Thoughts without words, between prompt and answer."""

from __future__ import annotations

from dataclasses import dataclass

from decoding.contract.params.invalid import check

MAX_THOUGHTS = 4096


@dataclass(frozen=True, slots=True)
class LatentThoughts:
    """Coconut (Hao et al. 2024, arXiv 2412.06769). count: thoughts, between the tokens start_id and end_id."""

    count: int
    start_id: int
    end_id: int

    def __post_init__(self) -> None:
        check(1 <= self.count <= MAX_THOUGHTS, "latent_thoughts.count", f"must be from 1 to {MAX_THOUGHTS}")
        check(self.start_id >= 0, "latent_thoughts.start_id", "must not be negative")
        check(self.end_id >= 0, "latent_thoughts.end_id", "must not be negative")

    @property
    def num_positions(self) -> int:
        return self.count + 2

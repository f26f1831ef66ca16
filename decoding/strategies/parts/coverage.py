"""GNMT's coverage penalty (Wu et al. 2016, arXiv 1609.08144, equation 14), for a decoder that reads its source.

    cp(X; Y) = beta * sum_i log(min(sum_j a_ij, 1))

X: the source's tokens.
a_ij: the weight of token i in the last layer's cross-attention, for the query that gives y_j; the mean over heads.

Our definitions: without an encoder the source is the prompt, and the softmax is over all keys; tokens of a chat
template belong to the prompt. Sums below 1e-9 count as 1e-9. A model's attention sinks are no keys, and so not in the
softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from decoding.seam import Reading
from decoding.strategies.parts.hypotheses import Path

FLOOR = 1e-9


class Coverage:
    """How much of the prompt each path under way has attended to."""

    def __init__(self, beta: float, num_source: int) -> None:
        self._beta = beta
        self._num_source = num_source
        self._covered: dict[Path, np.ndarray] = {}  # sum_j a_ij, float64 [num_source]

    def extend(self, extensions: Sequence[tuple[Path, Reading]]) -> None:
        """Go on to these paths, each with the reading that gave its last token."""
        attended = {id(reading): self._attended(reading) for _, reading in extensions}
        nothing = np.zeros(self._num_source)
        self._covered = {
            path: attended[id(reading)] + (self._covered.get(path.parent, nothing) if path.parent else nothing)
            for path, reading in extensions
        }

    def penalty(self, path: Path) -> float:
        """cp of one of the paths last extended to."""
        return self._beta * float(np.log(np.clip(self._covered[path], FLOOR, 1.0)).sum())

    def _attended(self, reading: Reading) -> np.ndarray:
        """a_ij of the tokens that this reading gives, float64 [num_source]."""
        assert reading.attention is not None
        scores = reading.attention.double().numpy()  # [heads, keys]
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        paid: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)  # [keys]
        return paid[: self._num_source]

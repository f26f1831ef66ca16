"""The last hidden states of a sequence, as unit vectors: what contrastive search compares its candidates with.

Kept on the host across preemptions: only the whole sequence run again, every position read, could rebuild it.
"""

from __future__ import annotations

import torch


class HiddenBank:
    def __init__(self) -> None:
        self._units = torch.empty(0, 0)  # [capacity, hidden]
        self._length = 0

    def extend(self, units: torch.Tensor) -> None:
        """Append units [m, hidden]; capacity at least doubles, so a sequence costs linear time in all."""
        end = self._length + len(units)
        if end > len(self._units):
            grown = torch.empty(max(end, 2 * len(self._units)), units.shape[1])
            if self._length:
                grown[: self._length] = self._units[: self._length]
            self._units = grown
        self._units[self._length : end] = units
        self._length = end

    def nearest(self, units: torch.Tensor) -> torch.Tensor:
        """The largest cosine of each of units [k, hidden] with any vector held: [k]."""
        return (self._units[: self._length] @ units.T).amax(dim=0)

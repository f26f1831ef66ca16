"""Counter-based random numbers and the batched draw.

A number depends on (seed, choice, position, purpose) and nothing else, so a draw is the same in any batch, after any
preemption and after a restart. Generator: Philox4x32-10 (Salmon et al. 2011), vectorised over keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from decoding.seam import Purpose
from decoding.topk.scores import topk

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ROUNDS = 10


def philox(counters: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Philox4x32-10: counters uint32 [N, 4], keys uint32 [N, 2] -> uint32 [N, 4]."""
    c0, c1, c2, c3 = (counters[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = keys[:, 0].copy(), keys[:, 1].copy()
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return np.stack((c0, c1, c2, c3), axis=1).astype(np.uint32)


def uniforms(
    seeds: Sequence[int],
    choices: Sequence[int],
    positions: Sequence[int],
    purposes: Sequence[Purpose],
    lane: int | np.ndarray = 0,
) -> np.ndarray:
    """One float64 in [0, 1) per key, [N]. `lane` (one for all, or [N]) separates several numbers drawn for one key."""
    seed = np.asarray(seeds, dtype=np.uint64)
    keys = np.stack(((seed & _LOW), seed >> _32), axis=1).astype(np.uint32)
    counters = np.empty((len(seed), 4), dtype=np.uint32)
    counters[:, 0] = positions
    counters[:, 1] = choices
    counters[:, 2] = purposes
    counters[:, 3] = lane
    bits = philox(counters, keys).astype(np.uint64)
    return ((bits[:, 0] << np.uint64(21)) ^ (bits[:, 1] >> np.uint64(11))).astype(np.float64) * 2.0**-53


_BLOCK = 256


def draw(scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw one id from softmax of each row: the first whose cumulative probability exceeds the uniform number.

    scores [rows, vocab] (-inf: excluded), uniform [rows] -> ids [rows]. A row with NaN or nothing but -inf gives some
    id of the vocabulary.

    Sums run over blocks of ids, then over the ids of one block: a running sum over the whole vocabulary would cost more
    than the rest of a draw. Both are float64.
    """
    num_rows, vocab = scores.shape
    weights = scores.softmax(dim=-1)  # row by row, where exp would depend on how the batch divides into vectors
    blocks = torch.nn.functional.pad(weights, (0, -vocab % _BLOCK)).view(num_rows, -1, _BLOCK)
    block_ends = blocks.sum(dim=-1).double().cumsum(dim=-1)  # [rows, blocks]
    target = uniform.unsqueeze(1) * block_ends[:, -1:]  # [rows, 1]
    block = torch.searchsorted(block_ends, target, right=True).clamp_(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, block_ends.gather(1, (block - 1).clamp_(min=0)), 0.0)
    inner = blocks[torch.arange(num_rows, device=scores.device), block.squeeze(1)].double().cumsum(dim=-1)
    # The block's own sum rounds differently from the running sum: stay below it, so that no excluded id is ever hit.
    below_end = torch.nextafter(inner[:, -1:], torch.zeros_like(target))
    offset = torch.searchsorted(inner, torch.minimum((target - before).clamp_(min=0), below_end), right=True)
    return (block * _BLOCK + offset).squeeze(1).clamp_(max=vocab - 1)  # NaN compares as beyond the end


def draw_without_replacement(weights: np.ndarray, uniforms: Sequence[float]) -> list[int]:
    """Draw one index for each uniform number, with probabilities proportional to weights [n] >= 0; in the order drawn.

    Ends early when no weight is left. Sums are over blocks, as in `draw`; when an index is drawn, only its block is
    added up again.
    """
    blocks = np.zeros((-(-len(weights) // _BLOCK), _BLOCK), dtype=weights.dtype)
    blocks.ravel()[: len(weights)] = weights
    sums = blocks.sum(axis=1, dtype=np.float64)
    drawn: list[int] = []
    for uniform in uniforms:
        ends = sums.cumsum()
        if not ends[-1] > 0:
            break
        # Products and sums round: stay below each end, so that no zero weight is ever hit.
        target = min(uniform * ends[-1], np.nextafter(ends[-1], 0.0))
        block = int(ends.searchsorted(target, side="right"))
        inner = blocks[block].cumsum(dtype=np.float64)
        rest = min(target - (ends[block - 1] if block else 0.0), np.nextafter(inner[-1], 0.0))
        offset = int(inner.searchsorted(rest, side="right"))
        drawn.append(block * _BLOCK + offset)
        blocks[block, offset] = 0
        sums[block] = blocks[block].sum(dtype=np.float64)
    return drawn


def draw_many_without_replacement(weights: np.ndarray, count: int, key: float) -> list[int]:
    """The same for a large count, in time that grows with n alone.

    Each index gets an exponential random time whose rate is its weight; the `count` earliest, in order, are a draw
    without replacement.

    key: a uniform number, the seed of all the random numbers here.
    """
    possible = np.flatnonzero(weights > 0)
    numbers = np.random.Generator(np.random.Philox(key=int(key * 2.0**53))).random(len(possible))
    arrivals = -np.log1p(-numbers) / weights[possible]
    if count < len(possible):
        first = np.argpartition(arrivals, count)[:count]
        possible, arrivals = possible[first], arrivals[first]
    drawn: list[int] = possible[np.argsort(arrivals, kind="stable")].tolist()
    return drawn


def greedy(scores: torch.Tensor) -> torch.Tensor:
    """The best id of each row, the lowest among equals: scores [rows, vocab] -> ids [rows]."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        return topk(scores, 1).ids[:, 0]  # argmax takes eight times as long
    return scores.argmax(dim=-1)

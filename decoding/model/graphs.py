"""Recorded forwards for ticks of few tokens: one graph for each bucket of tokens and of pages, all in one memory pool.

A recording decodes one token a row. A tick whose rows feed several (short prompts, windows to verify) is one of more
rows: each token attends as the last one of its row would, over the same pages, for all keys and values are written
before anybody attends. Inputs live in one device tensor that never moves; a tick copies its numbers there, pads rows up
to the bucket and replays. Padding rows are one token at position 0 whose keys and values go to page 0, which is
nobody's. No number from the host is inside a recording but the two sizes of its bucket. Knows neither models nor
attention, only what to record.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from decoding.attention.interface import Batch, DecodeInputs

ROW_BUCKETS = (
    1,
    2,
    4,
    8,
    16,
    24,
    32,
    48,
    64,
    96,
    *(n << shift for shift in range(5, 14) for n in (4, 5, 6, 7)),
    1 << 16,
)
"""From 128 on four to each power of two, up to the most rows that there can be."""

PAGE_BUCKETS = tuple(16 << shift for shift in range(0, 14, 2))
"""With pages of 16 positions: up to 256, 1 k, 4 k … 1 M positions."""

MOST_TOKENS = 512
"""Of rows that feed several: as a prompt longer than that keeps a GPU busy, it need not be launched fast."""

MOST_READ_AGAIN = 1 << 17
"""Keys that tokens of one row read each for itself, where a plain forward reads them once for all: beyond that the GPU
loses more time than the host wins. (Of 8 billion weights' models 16 GB, about 4 ms of an H200; launching takes 10.)"""

GRAPH_BYTES = 16 << 20
"""About what a recorded forward takes beside what it computes: its launches, one after the other."""

Run = Callable[[], torch.Tensor]
Decode = Callable[[DecodeInputs], Run]
"""What to record, given where its inputs will be."""

Bucket = tuple[int, int]
"""Rows and pages of a recording."""

Capture = Callable[[Run], Run]
"""Records what a forward does and returns what does it again; its result is the same tensor every time."""


class CannotCapture(Exception):
    """The forward does something that no recording can hold, such as reading a number back."""


class CudaCapture:
    """CUDA graphs that share one pool: their memory is that of the largest, and each overwrites another's results.

    All are recorded on one stream of their own, where each forward runs first: what torch keeps for every stream that
    multiplies is made once, and not in the pool. A recording that failed would leave torch's allocator believing in it
    for good (pytorch 180395, 190348), so what cannot be recorded is found out before: what waits for the GPU, and what
    there is no memory for.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool_bytes = 0  # what the largest of them took

    def __call__(self, run: Run) -> Run:
        """Raises CannotCapture, or torch.OutOfMemoryError where a smaller forward might still be recorded."""
        if not self._graphs:
            self._pool_bytes = 0
        needed = self._warm_up(run)
        self._check_memory(needed)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool(), stream=self._stream):
                out = run()
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError as error:
            raise CannotCapture(str(error)) from error
        self._graphs.add(graph)
        self._pool_bytes = max(self._pool_bytes, needed)

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay

    def _check_memory(self, needed: int) -> None:
        """Raise torch.OutOfMemoryError where the pool would have to grow by more than there is."""
        torch.cuda.empty_cache()  # what the forward left with torch's other pool does not count as free
        free, _ = torch.cuda.mem_get_info()
        if needed - self._pool_bytes + GRAPH_BYTES > free:
            raise torch.OutOfMemoryError(f"a recording takes {needed} bytes, and {free} are free")

    def _pool(self) -> Any:
        """That of the graphs there are: torch takes none whose last graph is gone."""
        alive = next(iter(self._graphs), None)
        return torch.cuda.graph_pool_handle() if alive is None else alive.pool()

    def _warm_up(self, run: Run) -> int:
        """Kernels are compiled and loaded outside of the recording. Returns the bytes that a run takes."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            with _refusing_to_wait():
                run()
        current.wait_stream(self._stream)
        return torch.cuda.max_memory_allocated() - before


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Whatever would make the host wait for the GPU, which no recording can hold, raises CannotCapture."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        raise CannotCapture(str(error)) from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """packed: all inputs, one after the other, int64; `inputs` are views of it.

    forward: what was recorded; whatever memory it reads must not be given to others while it can be replayed.
    """

    packed: torch.Tensor
    inputs: DecodeInputs
    forward: Run
    replay: Run


class DecodeGraphs:
    """Records what `record` names, and else at the first use of a bucket. Gives up for good when the model cannot be
    recorded; where only memory lacks, for buckets that are no smaller.
    """

    def __init__(self, decode: Decode, capture: Capture, device: torch.device) -> None:
        self._decode = decode
        self._capture = capture
        self._device = device
        self._recorded: dict[Bucket, _Recorded] = {}
        self._too_large: set[Bucket] = set()
        self._generation = 0
        self.is_able = True

    def record(self, buckets: Sequence[Bucket], generation: int, leaves_bytes: int) -> None:
        """Record all of them that memory suffices for, the largest first: the others use what it took.

        generation: of the attention's memory; with another one all recordings are void. leaves_bytes: none is begun
        where less than that is free; the ticks that are not recorded need it.
        """
        self._begin(generation)
        for bucket in sorted(buckets, key=lambda bucket: (bucket[0] * bucket[1], bucket), reverse=True):
            if self._device.type == "cuda" and torch.cuda.mem_get_info(self._device)[0] < leaves_bytes:
                self._too_large.update(other for other in buckets if other not in self._recorded)
                return
            if self._can_record(bucket):
                self._record(bucket, _idle(*bucket))

    def run(self, batch: Batch, generation: int) -> torch.Tensor | None:
        """The forward's result [T, hidden], valid until the next run; None where the batch is not for a recording."""
        bucket = bucket_of(batch)
        if bucket is None:
            return None
        self._begin(generation)
        found = self._recorded.get(bucket)
        if found is None and not self._can_record(bucket):
            return None
        packed = padded(batch, *bucket)
        if found is None:
            found = self._record(bucket, packed)
        elif self._device.type == "cuda":
            found.packed.copy_(torch.from_numpy(packed).pin_memory(), non_blocking=True)
        else:
            found.packed.copy_(torch.from_numpy(packed))
        if found is None:
            return None
        if batch.drawn is not None:
            found.inputs.token_ids[: batch.num_tokens].copy_(batch.drawn)
        return found.replay()[: batch.num_tokens]

    def _begin(self, generation: int) -> None:
        if generation != self._generation:
            self._recorded.clear()
            self._too_large.clear()
            self._generation = generation

    def _can_record(self, bucket: Bucket) -> bool:
        rows, pages = bucket
        return self.is_able and not any(rows >= other[0] and pages >= other[1] for other in self._too_large)

    def _record(self, bucket: Bucket, packed: np.ndarray) -> _Recorded | None:
        try:
            held = torch.from_numpy(packed).to(self._device, copy=True)
            inputs = unpack(held, *bucket)
            forward = self._decode(inputs)
            found = _Recorded(held, inputs, forward, self._capture(forward))
        except torch.OutOfMemoryError as error:
            warnings.warn(f"ticks of {bucket[0]} tokens and more are slow: {error}", stacklevel=2)
            self._too_large.add(bucket)
            return None
        except CannotCapture as error:
            warnings.warn(f"decode steps are slow, for this model's cannot be recorded: {error}", stacklevel=2)
            self.is_able = False
            self._recorded.clear()
            return None
        self._recorded[bucket] = found
        return found


def buckets_for(most_rows: int, most_pages: int) -> list[Bucket]:
    """Of all ticks that so many rows, with so long page tables, can have in recordings."""
    return [
        (rows, pages)
        for rows in _up_to(max(most_rows, MOST_TOKENS), ROW_BUCKETS)
        for pages in _up_to(most_pages, PAGE_BUCKETS)
    ]


def _up_to(most: int, buckets: Sequence[int]) -> Sequence[int]:
    """Those that counts up to `most` fall into."""
    return buckets[: bisect_left(buckets, most) + 1]


def _idle(num_rows: int, num_pages: int) -> np.ndarray:
    """As `padded`, of padding alone."""
    packed = np.zeros(num_rows * (4 + num_pages), dtype=np.int64)
    packed[3 * num_rows : 4 * num_rows] = 1
    return packed


def bucket_of(batch: Batch) -> Bucket | None:
    """Tokens and pages of the recording for this batch; None where it asks for more than plain tokens' hidden states,
    or where it is better off without.
    """
    tokens, pages = batch.num_tokens, batch.page_tables.shape[1]
    if batch.embeds or batch.probe_rows or tokens > ROW_BUCKETS[-1] or pages > PAGE_BUCKETS[-1]:
        return None
    if (
        tokens > max(batch.num_rows, MOST_TOKENS)
        or (batch.positions + 1).sum() - batch.kv_lengths.sum() > MOST_READ_AGAIN
    ):
        return None
    return ROW_BUCKETS[bisect_left(ROW_BUCKETS, tokens)], PAGE_BUCKETS[bisect_left(PAGE_BUCKETS, pages)]


def padded(batch: Batch, num_rows: int, num_pages: int) -> np.ndarray:
    """The batch's inputs in the order of DecodeInputs, each token a row: int64 [num_rows * (4 + num_pages)]."""
    tokens, pages = batch.num_tokens, batch.page_tables.shape[1]
    packed = _idle(num_rows, num_pages)
    columns = packed[: 4 * num_rows].reshape(4, num_rows)
    columns[:, :tokens] = batch.token_ids, batch.positions, batch.slots, batch.positions + 1
    tables = packed[4 * num_rows :].reshape(num_rows, num_pages)
    tables[:tokens, :pages] = np.repeat(batch.page_tables, np.diff(batch.query_starts), axis=0)
    return packed


def unpack(packed: torch.Tensor, num_rows: int, num_pages: int) -> DecodeInputs:
    """Views of what `padded` made."""
    token_ids, positions, slots, kv_lengths = packed[: 4 * num_rows].view(4, num_rows).unbind()
    return DecodeInputs(token_ids, positions, slots, kv_lengths, packed[4 * num_rows :].view(num_rows, num_pages))

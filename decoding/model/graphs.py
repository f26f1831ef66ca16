"""Recorded forwards for ticks that only decode: one graph for each bucket of rows and of pages, all in one memory pool.

Inputs live in one device tensor that never moves; a tick copies its numbers there, pads rows up to the bucket and
replays. Padding rows are one token at position 0 whose keys and values go to page 0, which is nobody's. No number from
the host is inside a recording but the two sizes of its bucket. Knows neither models nor attention, only what to record.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from decoding.attention.interface import Batch, DecodeInputs

ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512)
PAGE_BUCKETS = tuple(16 << shift for shift in range(0, 14, 2))
"""With pages of 16 positions: up to 256, 1 k, 4 k … 1 M positions."""

Run = Callable[[], torch.Tensor]
Decode = Callable[[DecodeInputs], Run]
"""What to record, given where its inputs will be."""


Capture = Callable[[Run], Run]
"""Records what a forward does and returns what does it again; its result is the same tensor every time."""


class CannotCapture(Exception):
    """The forward does something that no recording can hold, such as reading a number back."""


class CudaCapture:
    """CUDA graphs that share one pool: their memory is that of the largest, and each overwrites another's results.

    All are recorded on one stream of their own, where each forward runs first: what torch keeps for every stream that
    multiplies is made once, and not in the pool. A recording that failed would leave torch's allocator believing in it
    for good (pytorch 180395, 190348), so what cannot be recorded is found out before.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, run: Run) -> Run:
        self._warm_up(run)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool(), stream=self._stream):
                out = run()
        except RuntimeError as error:
            raise CannotCapture(str(error)) from error
        self._graphs.add(graph)

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay

    def _pool(self) -> Any:
        """That of the graphs there are: torch takes none whose last graph is gone."""
        alive = next(iter(self._graphs), None)
        return torch.cuda.graph_pool_handle() if alive is None else alive.pool()

    def _warm_up(self, run: Run) -> None:
        """Kernels are compiled and loaded outside of the recording."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run()
            with _refusing_to_wait():
                run()
        current.wait_stream(self._stream)


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Whatever would make the host wait for the GPU, which no recording can hold, raises CannotCapture."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except torch.OutOfMemoryError:
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
    """Records at the first use of a bucket. Gives up for good when the model cannot be recorded."""

    def __init__(self, decode: Decode, capture: Capture, device: torch.device) -> None:
        self._decode = decode
        self._capture = capture
        self._device = device
        self._recorded: dict[tuple[int, int], _Recorded] = {}
        self._generation = 0
        self.is_able = True

    def run(self, batch: Batch, generation: int) -> torch.Tensor | None:
        """The forward's result [rows, hidden], valid until the next run; None where the batch is not for a recording.

        generation: of the attention's memory; with another one all recordings are void.
        """
        bucket = bucket_of(batch)
        if bucket is None or not self.is_able:
            return None
        if generation != self._generation:
            self._recorded.clear()
            self._generation = generation
        packed = padded(batch, *bucket)
        found = self._recorded.get(bucket)
        if found is None:
            found = self._record(bucket, packed)
        elif self._device.type == "cuda":
            found.packed.copy_(torch.from_numpy(packed).pin_memory(), non_blocking=True)
        else:
            found.packed.copy_(torch.from_numpy(packed))
        if found is None:
            return None
        if batch.drawn is not None:
            found.inputs.token_ids[: batch.num_rows].copy_(batch.drawn)
        return found.replay()[: batch.num_rows]

    def _record(self, bucket: tuple[int, int], packed: np.ndarray) -> _Recorded | None:
        held = torch.from_numpy(packed).to(self._device, copy=True)
        inputs = unpack(held, *bucket)
        forward = self._decode(inputs)
        try:
            found = _Recorded(held, inputs, forward, self._capture(forward))
        except CannotCapture as error:
            warnings.warn(f"decode steps are slow, for this model's cannot be recorded: {error}", stacklevel=2)
            self.is_able = False
            self._recorded.clear()
            return None
        self._recorded[bucket] = found
        return found


def bucket_of(batch: Batch) -> tuple[int, int] | None:
    """Rows and pages of the recording for this batch; None unless every row decodes one plain token."""
    rows, pages = batch.page_tables.shape
    if batch.num_tokens != rows or batch.embeds or batch.probe_rows:
        return None
    if rows > ROW_BUCKETS[-1] or pages > PAGE_BUCKETS[-1]:
        return None
    return next(b for b in ROW_BUCKETS if b >= rows), next(b for b in PAGE_BUCKETS if b >= pages)


def padded(batch: Batch, num_rows: int, num_pages: int) -> np.ndarray:
    """The batch's inputs in the order of DecodeInputs, int64 [num_rows * (4 + num_pages)]."""
    rows, pages = batch.page_tables.shape
    packed = np.zeros(num_rows * (4 + num_pages), dtype=np.int64)
    columns = packed[: 4 * num_rows].reshape(4, num_rows)
    columns[:, :rows] = batch.token_ids, batch.positions, batch.slots, batch.kv_lengths
    columns[3, rows:] = 1
    packed[4 * num_rows :].reshape(num_rows, num_pages)[:rows, :pages] = batch.page_tables
    return packed


def unpack(packed: torch.Tensor, num_rows: int, num_pages: int) -> DecodeInputs:
    """Views of what `padded` made."""
    token_ids, positions, slots, kv_lengths = packed[: 4 * num_rows].view(4, num_rows).unbind()
    return DecodeInputs(token_ids, positions, slots, kv_lengths, packed[4 * num_rows :].view(num_rows, num_pages))

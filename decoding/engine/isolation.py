"""When a tick's encoding, forward or reads raise, the request that is the cause fails, and not the whole batch.

Out of memory: the youngest half gives way and the rest tries again, until it works or one request is left, which is too
large by itself. Anything else: each half runs by itself, down to the request that raises alone. Where request after
request fails so and none gets through, the model is broken and not the requests: then the exception goes on, and ends
the worker. So does at once what a GPU reports of itself, an illegal access or a failed assertion: nothing can be
launched any more in this process, whoever asks. What a plugin's code raises says nothing of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch

from decoding.engine.output import Failure
from decoding.engine.request import LiveRequest
from decoding.seam import NothingToDraw

BROKEN_AFTER = 4
"""Requests that fail alone, one after the other with no success between, before the model counts as broken."""

_CPU_ALLOCATOR = "DefaultCPUAllocator: can't allocate memory"  # torch raises a plain RuntimeError on the CPU


_CUDA_OUT_OF_MEMORY = 2  # the error code of a driver's that has none left, where torch's allocator was not asked


class Share(Protocol):
    """A request's part of what a tick runs."""

    @property
    def live(self) -> LiveRequest: ...


T = TypeVar("T", bound=Share)


class Isolation(Generic[T]):
    """attempt: runs what it is given whole, or raises before anything of it counts."""

    def __init__(
        self,
        attempt: Callable[[Sequence[T]], None],
        give_way: Callable[[Sequence[LiveRequest]], None],
        fail: Callable[[LiveRequest, Failure], None],
    ) -> None:
        self._attempt = attempt
        self._give_way = give_way
        self._fail = fail
        self._num_failed = 0

    def run(self, scheduled: Sequence[T]) -> None:
        """All of it, but for those who fail or give way. Raises what made the model or the device count as broken."""
        error = self._error_of(scheduled)
        if error is None:
            return
        lives = sorted({s.live for s in scheduled}, key=lambda live: live.order)
        if len(lives) == 1:
            self._fail_alone(lives[0], error)
            return
        older, younger = lives[: len(lives) // 2], lives[len(lives) // 2 :]
        halves = [[s for s in scheduled if s.live in half] for half in (older, younger)]
        if is_out_of_memory(error):
            self._give_way(younger)
            halves.pop()
        for half in halves:
            self.run(half)

    def _error_of(self, scheduled: Sequence[T]) -> Exception | None:
        """Returned, not handled where it is caught: its traceback holds the tensors of the attempt until then."""
        try:
            self._attempt(scheduled)
        except Exception as error:
            if is_of_the_device(error):
                raise
            return error.with_traceback(None) if is_out_of_memory(error) else error
        self._num_failed = 0
        return None

    def _fail_alone(self, live: LiveRequest, error: Exception) -> None:
        if not is_out_of_memory(error) and not live.request.is_foreign:
            self._num_failed += 1
            if self._num_failed >= BROKEN_AFTER:
                raise error
        self._fail(live, failure_of(error))


def failure_of(error: Exception) -> Failure:
    """What the request is told that caused the exception."""
    if is_out_of_memory(error):
        return Failure("out_of_memory", "the request needs more memory than there is", error)
    if isinstance(error, NothingToDraw):
        return Failure("nothing_to_draw", str(error))
    return Failure("internal", "the request failed", error)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.AcceleratorError):
        return getattr(error, "error_code", None) == _CUDA_OUT_OF_MEMORY
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _CPU_ALLOCATOR in str(error)


def is_of_the_device(error: BaseException) -> bool:
    """Whether the device itself failed: every later call of this process meets the same error."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)

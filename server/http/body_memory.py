"""How much memory the bodies of all requests may take together while they come in and wait to be parsed."""

from __future__ import annotations

from server.errors import ApiError

FREE_BYTES = 64 << 10  # of each body: few large bodies, sent slowly, must not keep everybody else's small ones out


class BodyMemory:
    """Counts what is held beyond the first FREE_BYTES of each body."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0

    def new_body(self) -> HeldBody:
        """To be given back by its `release`."""
        return HeldBody(self)

    def take(self, num_bytes: int) -> None:
        """Raises ApiError 503 if there is no room for so many more."""
        if self._num_bytes + num_bytes > self._max_bytes:
            message = "too many large requests are being received; try again soon"
            raise ApiError(503, message, code="too_many_bodies", retry_after=1)
        self._num_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self._num_bytes -= num_bytes


class HeldBody:
    """One body as far as it has come."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory = memory
        self._bytes = bytearray()
        self._num_taken = 0

    @property
    def num_bytes(self) -> int:
        return len(self._bytes)

    def add(self, piece: bytes) -> None:
        """Raises ApiError 503 if there is no room for it."""
        num_counted = max(len(self._bytes) + len(piece) - FREE_BYTES, 0)
        self._memory.take(num_counted - self._num_taken)
        self._num_taken = num_counted
        self._bytes += piece

    def pop(self) -> bytes:
        """All of it, counted until `release`."""
        body = bytes(self._bytes)
        self._bytes.clear()
        return body

    def release(self) -> None:
        """Idempotent: nothing of it is held any more."""
        self._bytes.clear()
        self._memory.give_back(self._num_taken)
        self._num_taken = 0

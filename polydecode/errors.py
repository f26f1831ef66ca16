"""What goes wrong with a request, as Python's own kinds of error. The words are those that the server answers with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import ApiError


class InvalidRequest(ValueError):
    """A parameter that cannot be, or two that do not go together. param: the field's name; code: as on the wire."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class TimedOut(TimeoutError):
    """The request's own `timeout` passed before its answer was complete."""


class DecodingFailed(RuntimeError):
    """The engine could not go on with a request: not finite scores, no memory, or a fault of ours. code: which."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


def as_python(error: ApiError) -> Exception:
    if error.status == 504:
        return TimedOut(error.message)
    if error.status >= 500:
        return DecodingFailed(error.message, error.code)
    return InvalidRequest(error.message, error.param, error.code)


@contextmanager
def refusals() -> Iterator[None]:
    """What is refused inside is raised as one of the errors here."""
    try:
        yield
    except ApiError as error:
        raise as_python(error) from None

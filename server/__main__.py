"""The `polydecode` command's first moments: the decode worker is started before the server imports its libraries."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from server.observe.error_stream import never_waiting
from server.worker.head_start import WORKER_COMMAND, HeadStart

COMMANDS = ("serve", "config", "default-config")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 after a drain, 1 for a failure, 2 for settings that cannot be."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, flags = (
        (arguments[0], arguments[1:]) if arguments[:1] and arguments[0] in COMMANDS else ("serve", arguments)
    )
    if command != "serve" or {"-h", "--help"} & {*flags}:
        from server.command import show  # noqa: PLC0415

        return show(command, flags)
    with _leaving_at_sigterm(), never_waiting() as errors, HeadStart(WORKER_COMMAND) as head_start:
        from server.command import serve  # noqa: PLC0415 - the worker's imports go on meanwhile

        return serve(flags, errors, head_start)


@contextlib.contextmanager
def _leaving_at_sigterm() -> Iterator[None]:
    """Until HTTP is up: a first process has no default that would end it."""
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(_: int, __: FrameType | None) -> None:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())

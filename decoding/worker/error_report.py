"""What the operator is told of an exception in the worker: one line of words, and apart from it the traceback.

The line names no folder and, once requests run, repeats no library's message: that may hold what a client sent.
"""

from __future__ import annotations

import re
import traceback
from pathlib import PurePath

from decoding.engine.isolation import is_out_of_memory

MAX_CHARS = 300
MAX_TRACE_LINES = 80
WORDLESS = (ValueError, OSError, RuntimeError)
"""Types whose names add nothing to their messages."""

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/'\"]+/)+")


def load_cause(error: BaseException) -> str:
    """Why a model cannot be loaded; whatever the message holds is the operator's own."""
    if is_out_of_memory(error):
        return "there is not enough memory for it"
    if isinstance(error, OSError) and error.strerror:
        file = PurePath(str(error.filename or "")).name
        return f"{file}: {error.strerror}" if file else error.strerror
    text = _first_line(str(error))
    is_worded = type(error) in WORDLESS or type(error).__module__.startswith("decoding.")
    return text if text and is_worded else f"{type(error).__name__}: {text}".removesuffix(": ")


def kind_and_place(error: BaseException) -> str:
    """The exception's type and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {'/'.join(PurePath(frames[-1].filename).parts[-3:])}:{frames[-1].lineno}" if frames else ""
    return type(error).__name__ + place


def trace_of(error: BaseException) -> tuple[str, ...]:
    """The lines of its traceback, the last ones where there are too many."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return tuple(lines[-MAX_TRACE_LINES:])


def _first_line(message: str) -> str:
    """Its printable characters, files without their folders."""
    line = next(iter(message.strip().splitlines()), "")[: 2 * MAX_CHARS]
    return _FOLDERS.sub("", "".join(c for c in line if c.isprintable()))[:MAX_CHARS]

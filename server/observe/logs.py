"""Logging: structlog for us and for the libraries' loggers alike, on stderr, one line an event.

Values are escaped, so that nothing a client sends can forge a line or drive a terminal. Exceptions are named with the
place they came from, without message, source or absolute path: those may hold what a client sent.
"""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import PurePath
from types import TracebackType
from typing import Literal

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

MAX_FRAMES = 6
QUIET_LIBRARIES = ("sse_starlette", "uvicorn", "httpx", "httpcore", "asyncio")


def configure(log_format: Literal["auto", "console", "json"], level: str, *, is_terminal: bool = False) -> None:
    """Sets up this process's logging; libraries that chat, or log request content, are kept at warnings.

    is_terminal: whether what reaches standard error is shown on one, in colours.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_exception,
        escape_controls,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(log_format, is_terminal)],
        )
    )
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))


def _renderer(log_format: str, is_terminal: bool) -> Processor:
    if log_format == "json" or (log_format == "auto" and not is_terminal):
        return structlog.processors.JSONRenderer()
    return structlog.dev.ConsoleRenderer(colors=is_terminal)


def name_exception(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """exc_info -> the exception's type and where it was raised."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info[1] if isinstance(info, tuple) else info
    if isinstance(error, BaseException):
        event["exception"] = type(error).__name__
        event["raised_at"] = _places(error.__traceback__)
    return event


def escape_controls(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Control characters as \\xNN or \\uNNNN."""
    return {name: _escaped(value) if isinstance(value, str) else value for name, value in event.items()}


def _escaped(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _places(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace)[-MAX_FRAMES:]
    return [f"{'/'.join(PurePath(frame.filename).parts[-3:])}:{frame.lineno} {frame.name}" for frame in frames]

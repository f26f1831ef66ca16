"""The `polydecode` command: reads the settings, takes the port, then builds the service and runs it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType

from server.http.server import BindError, bind
from server.observe import logs
from server.observe.error_stream import ErrorStream, never_waiting
from server.settings.settings import Settings, SettingsError, load
from server.settings.text import default_toml, effective_toml
from server.worker.descriptors import TooFewDescriptors
from server.worker.model_files import ModelError, about_the_draft, check
from server.worker.progress import progress_display

COMMANDS = ("serve", "config", "default-config")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 after a drain, 1 for a failure, 2 for settings that cannot be."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, flags = (
        (arguments[0], arguments[1:]) if arguments[:1] and arguments[0] in COMMANDS else ("serve", arguments)
    )
    try:
        loaded = load(flags)
    except SettingsError as error:
        return _fail(str(error), status=2)
    if command == "config":
        print(effective_toml(loaded), end="")
        return 0
    if command == "default-config":
        print(default_toml(), end="")
        return 0
    return serve(loaded.settings)


def serve(settings: Settings) -> int:
    signal.signal(signal.SIGTERM, _leave)  # until HTTP is up: a first process has no default that would end it
    with never_waiting() as errors:
        return _serve(settings, errors)


def _serve(settings: Settings, errors: ErrorStream) -> int:
    from server.service import Service  # noqa: PLC0415 - `polydecode config` need not wait for FastAPI
    from server.text.template_trial import try_file  # noqa: PLC0415

    logs.configure(settings.log_format, settings.log_level, is_terminal=errors.is_terminal)
    try:
        check(settings.model, may_download=settings.allow_download)
        if settings.draft_model:
            with about_the_draft():
                check(settings.draft_model, may_download=settings.allow_download)
        if settings.chat_template:
            try_file(Path(settings.chat_template))
        listener = bind(settings.host, settings.port)
    except (BindError, ModelError) as error:
        return _fail(str(error))
    with listener:
        try:
            service = Service(settings, progress_display(is_terminal=errors.is_terminal), errors=errors)
        except TooFewDescriptors as error:
            return _fail(str(error))
        failure = service.run(listener)
    return 0 if failure is None else _fail(failure)


def _leave(_: int, __: FrameType | None) -> None:
    sys.exit(0)


def _fail(message: str, status: int = 1) -> int:
    for line in message.splitlines():
        print(f"polydecode: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())

"""What `polydecode` does: reads the settings, takes the port, then builds the service and runs it."""

from __future__ import annotations

import sys
from pathlib import Path

from decoding.contract.plugin_loading import load_plugins
from decoding.contract.plugins import PluginError
from server.http.server import BindError, bind
from server.observe import logs
from server.observe.error_stream import ErrorStream
from server.settings.settings import Settings, SettingsError, load
from server.settings.text import default_toml, effective_toml
from server.worker.descriptors import TooFewDescriptors
from server.worker.head_start import HeadStart
from server.worker.model_files import ModelError, about, check
from server.worker.progress import progress_display


def show(command: str, flags: list[str]) -> int:
    """The settings. Exit status: 2 for some that cannot be."""
    try:
        loaded = load(flags)
    except SettingsError as error:
        return _fail(str(error), status=2)
    print(default_toml() if command == "default-config" else effective_toml(loaded), end="")
    return 0


def serve(flags: list[str], errors: ErrorStream, head_start: HeadStart) -> int:
    """Exit status: 0 after a drain, 1 for a failure, 2 for settings that cannot be."""
    try:
        loaded = load(flags)
    except SettingsError as error:
        return _fail(str(error), status=2)
    return _serve(loaded.settings, errors, head_start)


def _serve(settings: Settings, errors: ErrorStream, head_start: HeadStart) -> int:
    from server.service import Parts, Service  # noqa: PLC0415 - `polydecode config` need not wait for FastAPI
    from server.text.template_trial import try_file  # noqa: PLC0415

    logs.configure(settings.log_format, settings.log_level, is_terminal=errors.is_terminal)
    try:
        check(settings.model, may_download=settings.allow_download)
        for name, model in settings.beside.items():
            with about(name):
                check(model, may_download=settings.allow_download)
        if settings.chat_template:
            try_file(Path(settings.chat_template))
        plugins = load_plugins(settings.plugin, refused=("torch",))
        listener = bind(settings.host, settings.port)
    except (BindError, ModelError, PluginError) as error:
        return _fail(str(error))
    with listener:
        try:
            display = progress_display(is_terminal=errors.is_terminal)
            service = Service(settings, display, Parts(head_start=head_start), errors, plugins)
        except (PluginError, TooFewDescriptors) as error:
            return _fail(str(error))
        failure = service.run(listener)
    return 0 if failure is None else _fail(failure)


def _fail(message: str, status: int = 1) -> int:
    for line in message.splitlines():
        print(f"polydecode: {line}", file=sys.stderr)
    return status

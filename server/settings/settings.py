"""All settings together, and where their values come from: defaults < TOML < environment < flags.

`load` reads the sources and says where each value came from; an unknown key in any of them is an error. The same name
serves everywhere: `max_queue` in TOML, POLYDECODE_MAX_QUEUE, --max-queue. The settings themselves: `sections.py`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from server.settings.regular_file import MAX_TEXT, read_regular
from server.settings.sections import (
    EMPTY_KEY,
    EngineSettings,
    LimitSettings,
    LogSettings,
    ModelSettings,
    NetworkSettings,
    QueueSettings,
    Section,
    SupervisionSettings,
)

ENV_PREFIX = "POLYDECODE_"
_SERVICE_LINK = re.compile(
    ENV_PREFIX + r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
REPEATABLE = ("--served-model-name", "--also", "--api-key", "--allowed-hosts", "--plugin")
_NEVER_EMPTY = (f"{ENV_PREFIX}API_KEY",)  # set, but empty, it is refused; others then count as not set

Origin = Literal["default", "file", "environment", "flag", "argument"]
Kind = TypeVar("Kind", bound=Section)


class Settings(
    LogSettings,
    SupervisionSettings,
    LimitSettings,
    QueueSettings,
    NetworkSettings,
    EngineSettings,
    ModelSettings,
    BaseSettings,
):
    """OpenAI-compatible inference server in which every decoding strategy runs inside one continuous batch."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENV_PREFIX, env_ignore_empty=True, hide_input_in_errors=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """`load` merges the sources itself, to know where each value came from."""
        return (init_settings,)

    def section(self, kind: type[Kind]) -> Kind:
        """Some of the settings: those that are fields of `kind`."""
        return kind.model_construct(**{name: getattr(self, name) for name in kind.model_fields})


class CommandLine(Settings):
    __doc__ = Settings.__doc__

    config: str = Field("", description="TOML file with any of these settings.")


class SettingsError(ValueError):
    """A setting that cannot be: one line each, without the values (a key may be among them)."""


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    settings: Settings
    origins: Mapping[str, Origin]  # setting -> the source that won


def load(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> LoadedSettings:
    """The effective settings. Raises SettingsError; unknown flags and --help exit as argparse does."""
    flags = _flags(arguments)
    variables = _variables(environment)
    path = flags.pop("config", "") or variables.pop("config", "")
    layers: list[tuple[Origin, Mapping[str, Any]]] = [
        ("file", _file(Path(path)) if path else {}),
        ("environment", variables),
        ("flag", flags),
    ]
    origins: dict[str, Origin] = dict.fromkeys(Settings.model_fields, "default")
    values: dict[str, Any] = {}
    for origin, layer in layers:
        values.update(layer)
        origins.update(dict.fromkeys(layer, origin))
    return LoadedSettings(validated(values, origins), origins)


def _flags(arguments: Sequence[str]) -> dict[str, Any]:
    if ("--api-key", "") in pairwise(arguments) or "--api-key=" in arguments:  # pydantic-settings leaves such flags out
        raise SettingsError(f"api_key (flag): {EMPTY_KEY}")
    source: CliSettingsSource[Any] = CliSettingsSource(
        CommandLine,
        cli_prog_name="polydecode [serve | config | default-config | check]",
        cli_parse_args=list(_one_value_a_flag(arguments)),
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
    )
    return source()


def _one_value_a_flag(arguments: Sequence[str]) -> Iterator[str]:
    """`--served-model-name a b`, as vLLM takes it, becomes the flag given twice."""
    flag, has_value = "", False
    for argument in arguments:
        if argument.startswith("--"):
            flag, has_value = argument, False
        elif flag in REPEATABLE and has_value:
            yield flag
        else:
            has_value = True
        yield argument


def _variables(environment: Mapping[str, str]) -> dict[str, Any]:
    """Values of POLYDECODE_*; read by name, so that a misspelt variable is not silently without effect."""
    mine = {
        name: value
        for name, value in environment.items()
        if name.upper().startswith(ENV_PREFIX) and not _is_service_link(name, value)
    }
    known = {ENV_PREFIX + field.upper() for field in CommandLine.model_fields}
    unknown = sorted(name for name in mine if name.upper() not in known)
    if unknown:
        raise SettingsError(f"unknown environment variable: {', '.join(unknown)}")
    source = EnvSettingsSource(CommandLine)
    source.env_vars = {name.lower(): value for name, value in mine.items() if value or name.upper() in _NEVER_EMPTY}
    return source()


def _is_service_link(name: str, value: str) -> bool:
    """Kubernetes puts these into each pod beside a Service that is called polydecode."""
    return bool(_SERVICE_LINK.fullmatch(name)) or (name == f"{ENV_PREFIX}PORT" and "://" in value)


def _file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(read_regular(path, MAX_TEXT).decode())
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not TOML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path} is nested too deeply") from None
    unknown = sorted(values.keys() - Settings.model_fields.keys())
    if unknown:
        raise SettingsError(f"unknown key in {path}: {', '.join(unknown)}")
    return values


def validated(values: Mapping[str, Any], origins: Mapping[str, Origin]) -> Settings:
    """Raises SettingsError, which says where a value came from that cannot be."""
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError("\n".join(_line(item, origins) for item in error.errors(include_input=False))) from None


def _line(item: Any, origins: Mapping[str, Origin]) -> str:
    """One problem in words: `port (flag): Input should be a valid integer`."""
    message = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return message
    name = str(item["loc"][0])
    return f"{name} ({origins[name]}): {message}"

"""The wire's fields and the settings as flags of a command: `--num-beams 4 --sed.k 3 --no-ignore-eos --quantize int8`.

A value is JSON where the field takes anything but text, so that lists and objects can be given whole, too. What is no
field is left to the settings, whose flags, file and environment are the server's.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from polydecode.opening import SETTINGS
from server.settings.settings import CommandLine, SettingsError, load
from server.wire.base import Wire

NOT_FLAGS = ("model", "prompt", "messages", "stream", "stream_options")


@dataclass(frozen=True, slots=True)
class Flag:
    """name: as it is written on the command line, without its dashes. path: of the wire field."""

    name: str
    path: str
    kinds: frozenset[Any]
    text: str

    @property
    def is_switch(self) -> bool:
        return self.kinds == {bool}

    @property
    def is_text(self) -> bool:
        """Text, and never a number that reads as one."""
        return str in self.kinds and not self.kinds & {int, float}

    def value(self, written: str) -> Any:
        if self.is_text and not written.startswith(("[", "{")):
            return written
        try:
            return json.loads(written)
        except ValueError:
            return written


class NoFields(Wire):
    """For commands whose requests, if they make any, are not given as flags."""


def flags_of(wire: type[Wire], parent: str = "") -> Iterator[Flag]:
    """Of all fields, and of the fields of objects in them."""
    for name, info in wire.model_fields.items():
        known = info.alias or name
        if known in NOT_FLAGS and not parent:
            continue
        path = f"{parent}{known}"
        kinds = frozenset(_kinds(info.annotation))
        yield Flag(path.replace("_", "-"), path, kinds, _text(info))
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Wire)]
        if len(inner) == 1 and not parent:  # of several, only the whole says which is meant
            yield from flags_of(inner[0], f"{path}.")


def settings_flags() -> list[str]:
    """Those of the settings that a command without a server takes."""
    return [f"--{name.replace('_', '-')}" for name in ("config", *SETTINGS)]


def parse(
    parser: argparse.ArgumentParser, wire: type[Wire], arguments: Sequence[str]
) -> tuple[argparse.Namespace, dict[str, Any], dict[str, Any]]:
    """The parser's own values, the wire's fields, and the settings. Exits with 2 as argparse does."""
    words = [str(action.metavar) for action in parser._actions if not action.option_strings]
    group = parser.add_argument_group("fields of the request")
    flags = list(flags_of(wire))
    for flag in flags:
        if flag.is_switch:
            group.add_argument(
                f"--{flag.name}", dest=flag.path, action=argparse.BooleanOptionalAction, help=_escaped(flag.text)
            )
        else:
            group.add_argument(f"--{flag.name}", dest=flag.path, type=flag.value, metavar="…", help=_escaped(flag.text))
    parser.usage = f"{parser.prog} {' '.join(words)} [--FIELD …] [--SETTING …]".replace("  ", " ")
    parser.epilog = f"Settings, as of `polydecode serve --help`: {' '.join(settings_flags())}"
    values, rest = parser.parse_known_args(arguments)
    fields: dict[str, Any] = {}
    for flag in flags:
        value = getattr(values, flag.path)
        if value is not None:
            _put(fields, flag.path, value)
    return values, fields, _settings(parser, rest, [f"--{flag.name}" for flag in flags])


def _settings(parser: argparse.ArgumentParser, rest: Sequence[str], others: Sequence[str]) -> dict[str, Any]:
    """What flags, environment and file say of the engine."""
    known = [f"--{name.replace('_', '-')}" for name in CommandLine.model_fields]
    for argument in rest:
        name = argument.partition("=")[0]
        if name.startswith("--") and name.replace("--no-", "--", 1) not in known and name not in known:
            near = difflib.get_close_matches(name, [*known, *others], n=1)
            parser.error(f"unknown flag {name}" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        loaded = load(rest)
    except SettingsError as error:
        parser.error(str(error))
    told = {name: origin for name, origin in loaded.origins.items() if origin != "default"}
    for name, origin in told.items():
        if origin == "flag" and name not in SETTINGS:
            parser.error(f"--{name.replace('_', '-')} has no meaning without a server")
    return {name: getattr(loaded.settings, name) for name in told if name in SETTINGS}


def _put(fields: dict[str, Any], path: str, value: Any) -> None:
    parent, _, name = path.rpartition(".")
    inner = fields.setdefault(parent, {}) if parent else fields
    inner[name] = value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types in an annotation: bool, int, float, str, list, dict, Wire; a Literal counts as its values' types."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    elif origin is Literal:
        yield from map(type, get_args(annotation))
    elif origin is not None:
        yield origin
    elif annotation is not type(None):
        yield annotation


def _text(info: FieldInfo) -> str:
    extra = info.json_schema_extra
    default = extra.get("default") if isinstance(extra, dict) else None
    return (info.description or "") + ("" if default in (None, []) else f" Default: {json.dumps(default)}.")


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def fail(message: str, status: int = 1) -> int:
    """Say what is wrong as the server's command does."""
    for line in message.splitlines():
        print(f"polydecode: {line}", file=sys.stderr)
    return status

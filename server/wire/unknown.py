"""Names a request body may hold beyond the wire types: fields accepted and ignored, and fields that come later.

A later field is refused by name unless it has its neutral value, which asks for nothing. Any other name is unknown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.errors import ApiError
from server.wire.base import same
from server.wire.foreign_names import HINTS, translated

IGNORED = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "verbosity"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("use_cache", "output_scores", "return_dict_in_generate"),  # Hugging Face's, of how `generate` returns
    )
)

UNREAD = frozenset(
    (
        *("cache_control", "prompt_cache_breakpoint"),  # for the makers' own caches
        *("annotations", "provider_specific_fields", "reasoning_details", "thinking_blocks"),  # of others' answers
    )
)
"""Fields without effect inside messages, their parts and calls, and tools, as histories of other servers have them."""
UNREAD_ITEMS = UNREAD | {"encrypted_content", "summary"}
"""The same in a response's input: what others make of thoughts can be read by them alone, or by people."""
_HOLDERS: Mapping[str, frozenset[str]] = {"messages": UNREAD, "input": UNREAD_ITEMS, "tools": UNREAD}
_HELD = ("content", "tool_calls", "function")

LaterFields = Mapping[str, tuple[Any, ...]]
"""Field -> the values that ask for nothing; null always does."""
OLDER_IN_CHAT: LaterFields = {"functions": ([],), "function_call": ("none", "auto")}
LATER_IN_CHAT: LaterFields = {
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
    "moderation": (),
}

LATER_IN_EMBEDDINGS: LaterFields = {"dimensions": ()}

LATER_IN_RESPONSES: LaterFields = {
    "access_programs": ({},),
    "background_options": ({}, {"completion_window": "soonest"}),
    "context_management": ([],),
    "image": ({}, {"context_compression": "auto"}),
    "moderation": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "max_tool_calls": (),
    "background": (False,),
    "prompt": (),
    "previous_response_id": (),
    "conversation": (),
}


INSTEAD: Mapping[str, str] = {
    "functions": "it is the older form of tools; send those",
    "function_call": "it is the older form of tool_choice; send that",
}
"""What to send instead of what is refused."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A body sorted by field: what the wire type reads, and which fields were accepted without effect.

    sent_as: path of a field -> another server's name for it, by which the client sent it.
    """

    known: dict[str, Any]
    ignored: tuple[str, ...]
    sent_as: Mapping[str, str] = field(default_factory=dict)


def sort_fields(body: Mapping[str, Any], names: Iterable[str], later: LaterFields) -> Fields:
    """Divide a body's fields; `names` are the wire type's. Raises ApiError 400 on a later or an unknown field."""
    wanted = frozenset(names)
    ours = translated(body, wanted)
    unread: set[str] = set()
    body = ours.fields
    body |= {name: _read(body[name], name, names, unread) for name, names in _HOLDERS.items() if name in body}
    known = {name: value for name, value in body.items() if name in wanted}
    rest = [name for name in body if name not in wanted]
    for name in rest:
        if name in later:
            _refuse_unless_neutral(name, body[name], later[name])
        elif name not in IGNORED:
            raise unknown_field(name, wanted | IGNORED | later.keys())
    ignored = tuple(sorted([*unread, *(name for name in rest if name in IGNORED and body[name] is not None)]))
    return Fields(known, ignored, ours.sent_as)


def unknown_field(name: str, known: Iterable[str], parent: str = "") -> ApiError:
    """The 400 that names the field and what to say instead: what is known of it, or the known name nearest to it."""
    shown = (parent + name)[:100]
    if shown in HINTS:
        return ApiError(400, f"unknown field '{shown}'; {HINTS[shown]}", param=shown, code="unknown_field")
    near = difflib.get_close_matches(name[:100], sorted(known), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return ApiError(400, f"unknown field '{shown}'{hint}", param=shown, code="unknown_field")


def _read(value: Any, path: str, without: frozenset[str], unread: set[str]) -> Any:
    """What of messages or tools is read. unread: gathers the paths of what is not, unless it says nothing."""
    if isinstance(value, list):
        objects = bool(value) and isinstance(value[0], dict)
        return [_read(each, path, without, unread) for each in value] if objects else value
    if not isinstance(value, dict):
        return value
    unread |= {f"{path}.{name}" for name in value.keys() & without if value[name]}
    read = {name: inner for name, inner in value.items() if name not in without}
    return read | {name: _read(read[name], f"{path}.{name}", without, unread) for name in _HELD if name in read}


def _refuse_unless_neutral(name: str, value: Any, neutral: tuple[Any, ...]) -> None:
    if value is None or any(same(value, other) for other in neutral):
        return
    problem = f"is not supported: {INSTEAD[name]}" if name in INSTEAD else "is not supported yet"
    raise ApiError(400, f"{name} {problem}", param=name, code="unsupported_field")

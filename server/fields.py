"""Names a request body may hold beyond the wire types: fields accepted and ignored, and fields that come later.

A later field is refused by name unless it has its neutral value, which asks for nothing. Any other name is unknown.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.errors import ApiError
from server.foreign_names import HINTS, translated
from server.wire import same

IGNORED = frozenset(
    (
        *("user", "metadata", "store", "service_tier", "safety_identifier", "verbosity"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("use_cache", "output_scores", "return_dict_in_generate"),  # Hugging Face's, of how `generate` returns
    )
)

# field -> the values that ask for nothing; null always does
LATER_IN_CHAT: Mapping[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
}

LATER_IN_EMBEDDINGS: Mapping[str, tuple[Any, ...]] = {"dimensions": ()}

LATER_IN_RESPONSES: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "max_tool_calls": (),
    "background": (False,),
    "truncation": ("disabled",),
    "reasoning": ({},),
    "prompt": (),
    "stream_options": ({}, {"include_obfuscation": False}),
    "previous_response_id": (),
    "conversation": (),
}


@dataclass(frozen=True, slots=True)
class Fields:
    """A body sorted by field: what the wire type reads, and which fields were accepted without effect.

    sent_as: path of a field -> another server's name for it, by which the client sent it.
    """

    known: dict[str, Any]
    ignored: tuple[str, ...]
    sent_as: Mapping[str, str] = field(default_factory=dict)


def sort_fields(body: Mapping[str, Any], names: Iterable[str], later: Mapping[str, tuple[Any, ...]]) -> Fields:
    """Divide a body's fields; `names` are the wire type's. Raises ApiError 400 on a later or an unknown field."""
    wanted = frozenset(names)
    ours = translated(body, wanted)
    body = ours.fields
    known = {name: value for name, value in body.items() if name in wanted}
    rest = [name for name in body if name not in wanted]
    for name in rest:
        if name in later:
            _refuse_unless_neutral(name, body[name], later[name])
        elif name not in IGNORED:
            raise unknown_field(name, wanted | IGNORED | later.keys())
    ignored = tuple(sorted(name for name in rest if name in IGNORED and body[name] is not None))
    return Fields(known, ignored, ours.sent_as)


def unknown_field(name: str, known: Iterable[str], parent: str = "") -> ApiError:
    """The 400 that names the field and what to say instead: what is known of it, or the known name nearest to it."""
    shown = (parent + name)[:100]
    if shown in HINTS:
        return ApiError(400, f"unknown field '{shown}'; {HINTS[shown]}", param=shown, code="unknown_field")
    near = difflib.get_close_matches(name[:100], sorted(known), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return ApiError(400, f"unknown field '{shown}'{hint}", param=shown, code="unknown_field")


def _refuse_unless_neutral(name: str, value: Any, neutral: tuple[Any, ...]) -> None:
    if value is None or any(same(value, other) for other in neutral):
        return
    raise ApiError(400, f"{name} is not supported yet", param=name, code="unsupported_field")

"""The bounds of a request that need the settings but no model: checked before a place in the queue is asked for.

`asked_within` raises ApiError 400; what it lets through has a sound strategy, and as many rows as it may have.
"""

from __future__ import annotations

from typing import TypeVar

from decoding.contract.answers import compile_answer
from decoding.contract.params import PARAMS, CotDecoding, InvalidParam
from decoding.contract.params.declared import FromText, declared
from server.errors import ApiError
from server.settings.limits import Limits
from server.translate.asked import Asked, asked_of
from server.translate.prompts import num_prompts
from server.translate.structure import check_structure
from server.translate.table import table_of
from server.translate.tool_use import check_tools
from server.wire.base import at
from server.wire.requests import PROMPT, ChatRequest, CompletionRequest, Decoding, EmbeddingRequest

PARAM_TEXTS = (
    *(each.path for own in PARAMS.values() for each in declared(own).values() if each.mark(FromText)),
    *("entropix.think_text", "pause_tokens.text", "sed.question", "sed.yes", "sed.no"),
)
NEUTRAL_MAX_ANSWER = CotDecoding().max_answer
Body = TypeVar("Body", CompletionRequest, ChatRequest)
ALIASES = (("min_tokens", "min_new_tokens"), ("n", "num_return_sequences"), ("max_tokens", "max_completion_tokens"))


def num_rows(asked: Asked[CompletionRequest | ChatRequest]) -> int:
    """The most rows the request can have alive at once, over all its prompts."""
    wire, rows = asked.wire, asked.params.max_rows
    return rows * num_prompts(wire.prompt) if isinstance(wire, CompletionRequest) else rows


def asked_within(wire: Body, limits: Limits) -> Asked[Body]:
    """What the request asks for, found within every bound that depends on the settings and free of contradictions."""
    asked = asked_of(wire)
    try:
        _check_strategy(asked, limits)
        if isinstance(wire, ChatRequest):
            check_tools(wire, limits)
    except InvalidParam as invalid:
        raise refused(invalid) from None
    _check_sizes(wire, limits)
    _check_pairs(wire)
    if isinstance(wire, CompletionRequest):
        if num_prompts(wire.prompt) == 0:
            raise bad_field("prompt", f"must be {PROMPT}")
        _at_most(wire.logprobs, limits.max_logprobs, "logprobs")
        if num_rows(asked) > limits.max_rows_per_request:
            raise bad_field("prompt", f"times the rows of each must be at most {limits.max_rows_per_request}")
        if wire.suffix:
            message = "is not supported: the model has no fill-in-the-middle tokens"
            raise bad_field("suffix", message, code="unsupported_field")
    else:
        _at_most(len(wire.messages), limits.max_messages, "messages", "entries")
        _at_most(wire.top_logprobs, limits.max_logprobs, "top_logprobs")
    return asked


def embedding_within(wire: EmbeddingRequest, limits: Limits) -> EmbeddingRequest:
    """The request, found within the bounds that depend on the settings."""
    if num_prompts(wire.input) > limits.max_rows_per_request:
        raise bad_field("input", f"must have at most {limits.max_rows_per_request} entries")
    _at_most(len(wire.cache_salt or ""), limits.max_cache_salt_chars, "cache_salt", "characters")
    check_priority(wire.priority, limits)
    return wire


def refused(invalid: InvalidParam) -> ApiError:
    return ApiError(400, str(invalid), param=invalid.param)


def stops_of(wire: Decoding) -> tuple[str, ...]:
    if wire.stop is None:
        return ()
    return (wire.stop,) if isinstance(wire.stop, str) else tuple(wire.stop)


def check_priority(priority: int | None, limits: Limits) -> None:
    if priority and not limits.allow_priority:
        raise bad_field("priority", "must be 0: this server runs requests as they come (allow_priority)")


def bad_field(field: str, message: str, code: str | None = None) -> ApiError:
    return ApiError(400, f"{field} {message}", param=field, code=code)


def _check_strategy(asked: Asked[Decoding], limits: Limits) -> None:
    _check_regex(asked.wire, limits.max_regex_chars)
    check_structure(asked.wire, limits)
    rows, strategy, most = asked.params.max_rows, asked.strategy, limits.max_rows_per_prompt
    if rows > most:
        field = asked.keys.get(strategy.rows, strategy.rows)
        raise InvalidParam(field, f"makes {rows} rows with {strategy.name}; a prompt can have {most}")


def _check_regex(wire: Decoding, max_chars: int) -> None:
    pattern = at(wire, "cot_decoding.answer_regex")
    if pattern is None:
        return
    if len(pattern) > max_chars:
        raise InvalidParam("cot_decoding.answer_regex", f"must have at most {max_chars} characters")
    compile_answer(pattern)


def _check_sizes(wire: Decoding, limits: Limits) -> None:
    for path in ("temperature", "adapt.hot", "adapt.cold"):
        _at_most(at(wire, path), limits.max_temperature, path)
    _at_most(wire.prompt_logprobs, limits.max_logprobs, "prompt_logprobs")
    _at_most(len(wire.logit_bias or ()), limits.max_logit_bias, "logit_bias", "entries")
    _at_most(len(wire.allowed_token_ids or ()), limits.max_allowed_token_ids, "allowed_token_ids", "entries")
    _at_most(len(wire.stop_token_ids or ()), limits.max_stop_token_ids, "stop_token_ids", "entries")
    _at_most(len(wire.cache_salt or ""), limits.max_cache_salt_chars, "cache_salt", "characters")
    stops = stops_of(wire)
    _at_most(len(stops), limits.max_stop, "stop", "strings")
    _at_most(max(map(len, stops), default=0), limits.max_stop_chars, "stop", "characters a string")
    if not all(stops):
        raise bad_field("stop", "must not hold an empty string")
    words = wire.bad_words or ()
    _at_most(len(words), limits.max_bad_words, "bad_words", "strings")
    _at_most(max(map(len, words), default=0), limits.max_bad_word_chars, "bad_words", "characters a string")
    check_priority(wire.priority, limits)
    for path in (*PARAM_TEXTS, *table_of(wire.PLUGINS).texts):
        _at_most(_num_chars(at(wire, path)), limits.max_param_chars, path, "characters")


def _num_chars(value: object) -> int:
    """Of a text, or of all texts in a list."""
    if isinstance(value, list):
        return sum(map(_num_chars, value))
    return len(value) if isinstance(value, str) else 0


def _check_pairs(wire: CompletionRequest | ChatRequest) -> None:
    for one, other in ALIASES:
        values = (at(wire, one), at(wire, other))
        if None not in values and values[0] != values[1]:
            raise bad_field(one, f"and {other} are the same and must not differ")
    cot = wire.cot_decoding
    if cot is not None and cot.max_answer not in (None, NEUTRAL_MAX_ANSWER) and cot.suffix is None:
        raise bad_field("cot_decoding.max_answer", "has no meaning without cot_decoding.suffix")


def _at_most(value: float | None, limit: float, field: str, unit: str = "") -> None:
    if value is not None and value > limit:
        raise bad_field(field, f"must have at most {limit} {unit}" if unit else f"must be at most {limit}")

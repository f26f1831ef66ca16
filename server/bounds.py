"""The bounds of a request that need the settings but no model: checked before a place in the queue is asked for."""

from __future__ import annotations

from server.errors import ApiError
from server.limits import Limits
from server.prompts import num_prompts
from server.protocol import PROMPT, ChatRequest, CompletionRequest, Decoding


def num_rows(wire: CompletionRequest | ChatRequest) -> int:
    """The most rows the request can have alive at once, over all its prompts."""
    rows = max(wire.n or 1, wire.best_of or 1)
    return rows * num_prompts(wire.prompt) if isinstance(wire, CompletionRequest) else rows


def check_limits(wire: CompletionRequest | ChatRequest, limits: Limits) -> None:
    """Every bound that depends on the settings, and every contradiction inside the request."""
    _check_sizes(wire, limits)
    _check_pairs(wire)
    if isinstance(wire, CompletionRequest):
        if num_prompts(wire.prompt) == 0:
            raise bad_field("prompt", f"must be {PROMPT}")
        _at_most(wire.logprobs, limits.max_logprobs, "logprobs")
        if num_rows(wire) > limits.max_request_rows:
            raise bad_field("prompt", f"times the rows of each (n, best_of) must be at most {limits.max_request_rows}")
        if wire.suffix:
            message = "is not supported: the model has no fill-in-the-middle tokens"
            raise bad_field("suffix", message, code="unsupported_field")
    else:
        _at_most(len(wire.messages), limits.max_messages, "messages", "entries")
        _at_most(wire.top_logprobs, limits.max_logprobs, "top_logprobs")
        _check_chat_pairs(wire)


def stops_of(wire: Decoding) -> tuple[str, ...]:
    if wire.stop is None:
        return ()
    return (wire.stop,) if isinstance(wire.stop, str) else tuple(wire.stop)


def bad_field(field: str, message: str, code: str | None = None) -> ApiError:
    return ApiError(400, f"{field} {message}", param=field, code=code)


def _check_sizes(wire: Decoding, limits: Limits) -> None:
    _at_most(wire.n, limits.max_rows, "n")
    _at_most(wire.best_of, limits.max_rows, "best_of")
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


def _check_pairs(wire: Decoding) -> None:
    if wire.best_of is not None and wire.best_of < (wire.n or 1):
        raise bad_field("best_of", "must not be less than n")
    if wire.best_of_rank is not None and wire.best_of is None:
        raise bad_field("best_of_rank", "has no meaning without best_of")
    if wire.stream_options is not None and not wire.stream:
        raise bad_field("stream_options", "has no meaning without stream")
    if None not in (wire.min_tokens, wire.min_new_tokens) and wire.min_tokens != wire.min_new_tokens:
        raise bad_field("min_tokens", "and min_new_tokens are the same and must not differ")


def _check_chat_pairs(wire: ChatRequest) -> None:
    if wire.top_logprobs and not wire.logprobs:
        raise bad_field("top_logprobs", "has no meaning without logprobs")
    if None not in (wire.max_tokens, wire.max_completion_tokens) and wire.max_tokens != wire.max_completion_tokens:
        raise bad_field("max_tokens", "and max_completion_tokens are the same and must not differ")


def _at_most(value: int | None, limit: int, field: str, unit: str = "") -> None:
    if value is not None and value > limit:
        raise bad_field(field, f"must have at most {limit} {unit}" if unit else f"must be at most {limit}")

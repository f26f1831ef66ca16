"""What a model's generation_config.json recommends, for requests that do not say otherwise (--generation-defaults).

Every field that has a meaning here is taken: most as fields of a request, lengths and tokens beside them (`BESIDE`). Of
what changes the answer and cannot be taken a line is logged. A strategy is recommended to requests that ask for none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from decoding.contract.params import InvalidParam
from decoding.contract.params.declared import MAX_INT
from server.errors import ApiError
from server.text.template_files import read_json
from server.translate.asked import Asked, Body, asked_of
from server.translate.table import FILTERS, OFF, SAMPLING
from server.wire.base import Count, Items, Positive, TokenId, Wire, at
from server.wire.requests import ChatRequest, CompletionRequest, Decoding
from server.worker.model_files import ModelError

FILE = "generation_config.json"
STRATEGY = (
    ("do_sample",), ("num_beams",), ("num_beam_groups", "diversity_penalty"), ("penalty_alpha", "top_k"),
    ("dola_layers",), ("guidance_scale",), ("prompt_lookup_num_tokens", "max_matching_ngram_size"),
)  # fmt: skip
"""What asks for a strategy, each with what it may need; the first ones win where they do not go together."""
_NAMING = frozenset(names[0] for names in STRATEGY)
PLAIN = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "no_repeat_ngram_size", "exponential_decay_length_penalty", "length_penalty", "early_stopping",
    "diversity_penalty", "max_matching_ngram_size", "num_return_sequences", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold",
)  # fmt: skip
RENAMED = {"stop_strings": "stop"}
NOTHING_HERE = frozenset({
    # read by the worker, whatever the setting
    "eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id",
    # how transformers computes and what it returns
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory",
    "compile_config", "disable_compile", "continuous_batching_config", "remove_invalid_values", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    # how it drafts: the distribution is the same
    "use_mtp", "is_assistant", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "speculation_type",
    # where the file comes from
    "transformers_version", "_from_model_config",
})  # fmt: skip
LACKING = frozenset({
    "max_time", "top_h", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "renormalize_logits",
    "begin_suppress_tokens", "sequence_bias", "token_healing", "watermarking_config", "constraints", "force_words_ids",
    "assistant_ensemble_weight",
})  # fmt: skip
"""transformers' fields that change an answer and have no counterpart here: logged, as unknown ones are."""

WARPING = ("temperature", *FILTERS)
"""No recommendation for a request that draws nothing."""


class Beside(Wire):
    """What is recommended and is no field of a request, or gives way to the request's other lengths."""

    max_length: Positive | None = None
    max_new_tokens: Positive | None = None
    min_length: Count | None = None
    min_new_tokens: Count | None = None
    bad_words_ids: Items[Items[TokenId]] | None = None
    suppress_tokens: Items[TokenId] | None = None
    forced_bos_token_id: TokenId | None = None
    forced_eos_token_id: TokenId | Items[TokenId] | None = None


BESIDE = frozenset(Beside.model_fields)
TAKEN = frozenset({*PLAIN, *RENAMED, *BESIDE, *(name for names in STRATEGY for name in names)})


def recommended(directory: Path, max_rows: int = 64) -> dict[str, Any]:
    """What the model's file sets, in wire names where there are any. Raises ModelError on a value that cannot be.

    max_rows: the most that a strategy may have for a prompt.
    """
    values = {name: value for name, value in read_json(directory / FILE).items() if value not in (None, "", [], {})}
    left = [name for name, value in values.items() if name not in TAKEN | NOTHING_HERE and not _is_off(name, value)]
    found = {RENAMED.get(name, name): value for name, value in values.items() if name in TAKEN}
    if found.get("num_assistant_tokens_schedule") == "heuristic_transient":
        left.append("num_assistant_tokens_schedule")
        del found["num_assistant_tokens_schedule"]
    if not read_json(directory / "config.json").get("is_encoder_decoder") and "forced_bos_token_id" in found:
        left.append("forced_bos_token_id")
    _check(found)
    if "" in [*found.get("stop", ())]:
        raise ModelError(f"the model's {FILE} has an empty stop string")
    found = _without_idle(found)
    left += _unfit(found, max_rows)
    if left:
        structlog.get_logger("startup").warning("generation defaults that are not taken", fields=", ".join(left))
    return {name: value for name, value in found.items() if name not in left}


def with_defaults(asked: Asked[Body], defaults: Mapping[str, Any]) -> Asked[Body]:
    """The request with every default that it says nothing of and that has a meaning beside what it says."""
    if not defaults:
        return asked
    asked = _with_strategy(asked, defaults)
    for name, value in defaults.items():
        is_settled = name in BESIDE or name in _NAMING or at(asked.wire, name) is not None
        if not is_settled and (name not in WARPING or asked.warps):
            filled = _filled(asked, {name: value})
            asked = filled if filled.strategy is asked.strategy else asked
    return asked


def max_tokens(defaults: Mapping[str, Any], num_prompt: int) -> int | None:
    """The recommended length of an answer to a prompt of so many tokens, which max_length counts too."""
    most: int | None = defaults.get("max_new_tokens")
    if most is None and defaults.get("max_length", 0) > num_prompt:
        return int(defaults["max_length"]) - num_prompt
    return most


def min_tokens(asked: Asked[Decoding], defaults: Mapping[str, Any], num_prompt: int) -> int:
    """The least, for a request that does not say what its answer is made of."""
    form = ("response_format", "structured", "allowed_token_ids")
    if any(key in asked.keys for key in form) or (isinstance(asked.wire, ChatRequest) and asked.wire.tools):
        return 0
    return max(int(defaults.get("min_new_tokens", 0)), int(defaults.get("min_length", 0)) - num_prompt, 0)


def never_said(defaults: Mapping[str, Any], vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """bad_words_ids and suppress_tokens, as far as the model has them."""
    words = [*map(tuple, defaults.get("bad_words_ids", ())), *((i,) for i in defaults.get("suppress_tokens", ()))]
    return tuple(word for word in words if word and max(word) < vocab_size)


def forced_ends(defaults: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    ends: int | Sequence[int] = defaults.get("forced_eos_token_id", ())
    return tuple(end for end in ([ends] if isinstance(ends, int) else ends) if end < vocab_size)


def _check(found: Mapping[str, Any]) -> None:
    """Raises ModelError."""
    try:
        Beside.model_validate({name: value for name, value in found.items() if name in BESIDE})
        CompletionRequest.model_validate({"prompt": "x"} | {n: value for n, value in found.items() if n not in BESIDE})
    except ValidationError as failure:
        name = failure.errors()[0]["loc"][0]
        raise ModelError(f"the model's {FILE} has a {name} that cannot be") from None


def _without_idle(found: Mapping[str, Any]) -> dict[str, Any]:
    """Without what asks for nothing: switched off, or temperature and filters where nothing is drawn."""
    is_grouped = "num_beam_groups" in found  # then no penalty is less than what holds without a word
    kept = {n: v for n, v in found.items() if v not in OFF.get(n, ()) or (n == "diversity_penalty" and is_grouped)}
    if kept.get("do_sample") is True and "num_beams" not in kept:
        del kept["do_sample"]
    if kept.get("do_sample") is False:
        own = {"top_k"} if "penalty_alpha" in kept else set()
        kept = {name: value for name, value in kept.items() if name not in {*WARPING} - own}
    return kept


def _unfit(found: Mapping[str, Any], max_rows: int) -> list[str]:
    """What asks for a strategy that cannot be had, or not beside another that is asked for."""
    fit: dict[str, Any] = {}
    left = []
    for key, *beside in STRATEGY:
        if key in found:
            more = {name: found[name] for name in (key, *beside) if name in found}
            if _sound(CompletionRequest(prompt="x", **fit, **more), max_rows):
                fit |= more
            else:
                left.append(key)
    if "diversity_penalty" in found and "num_beam_groups" not in fit:
        left.append("diversity_penalty")
    return left


def _with_strategy(asked: Asked[Body], defaults: Mapping[str, Any]) -> Asked[Body]:
    """A request that says how it draws has asked for a strategy."""
    groups = (names for names in STRATEGY if names[0] in defaults)
    given = {name: defaults[name] for names in groups for name in names if name in defaults}
    says = any(at(asked.wire, name) is not None for name in (*WARPING, "do_sample"))
    if not given or says or asked.strategy is not SAMPLING:
        return asked
    return _filled(asked, {name: value for name, value in given.items() if at(asked.wire, name) is None})


def _filled(asked: Asked[Body], values: Mapping[str, Any]) -> Asked[Body]:
    """With further fields, where they go together with its own."""
    return _sound(asked.wire.model_copy(update=values)) or asked


def _sound(wire: Body, max_rows: int = MAX_INT) -> Asked[Body] | None:
    """What the request asks for, None where its fields do not go together or take too many rows."""
    try:
        asked = asked_of(wire)
        return asked if asked.params.max_rows <= max_rows else None
    except (ApiError, InvalidParam):
        return None


def _is_off(name: str, value: object) -> bool:
    """Of a field that transformers alone has."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is False or (is_number and value == (1 if name == "encoder_repetition_penalty" else 0))

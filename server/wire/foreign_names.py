"""Names that other servers and libraries have for our fields.

A name that means exactly the same is an alias: the request is read as if it had ours. Of the others a 400 says what to
send instead, for the name whose letters are nearest is often one that means the opposite.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from server.errors import ApiError
from server.wire.base import same

LENGTH = ("max_tokens", "max_output_tokens")

# foreign name -> our fields that mean the same; the first one that the route has
ALIASES: Mapping[str, tuple[str, ...]] = {
    "max_new_tokens": LENGTH,  # Hugging Face, TGI
    "n_predict": LENGTH,  # llama.cpp
    "num_predict": LENGTH,  # Ollama
    "max_tokens_to_sample": LENGTH,  # Anthropic's completions
    "stop_strings": ("stop",),  # Hugging Face
    "stop_sequences": ("stop",),  # TGI, Cohere, Anthropic
    "eos_token_id": ("stop_token_ids",),  # Hugging Face
    "negative_prompt_ids": ("negative_prompt",),  # Hugging Face
    "repeat_penalty": ("repetition_penalty",),  # llama.cpp, Ollama
    "repeat_last_n": ("repetition_penalty_window",),  # llama.cpp, Ollama
    "random_seed": ("seed",),  # Mistral
    "structured_outputs": ("structured",),  # vLLM
    "guided_json": ("structured.json",),  # vLLM before 0.12, as the next three
    "guided_regex": ("structured.regex",),
    "guided_choice": ("structured.choice",),
    "guided_grammar": ("structured.grammar",),
}

_LENGTHS = "it counts the prompt's tokens too; {ours} counts the answer's alone"
_MASKED = "send logit_bias with -100 for each of these tokens"
_WARPER = "it is not known here; top_n_sigma and min_p keep high temperatures in bounds"
_LOOPS = "it is not known here; no_repeat_ngram_size and lz_penalty work against loops"
_ENTROPY = "it is not known here; edt sets the temperature by the entropy of each step"
_DRAFT = "it is the server's to choose, by --draft-model; speculative: true asks for it"
_STRUCTURED = "say it as structured.{ours}"
_TEMPLATE = "it belongs in chat_template_kwargs, if the model's chat template knows it"
_OTHER_ROUTE = "it is not a field of this route; {ours} has it"

# foreign name -> what to know of it
HINTS: Mapping[str, str] = {
    # Hugging Face
    "max_length": _LENGTHS.format(ours="max_tokens"),
    "min_length": _LENGTHS.format(ours="min_tokens"),
    "bad_words_ids": "it cannot be said in ids; bad_words takes the texts",
    "force_words_ids": "it is not known here; structured.regex holds an answer to a form that has the words",
    "constraints": "it is not known here; structured holds an answer to a form",
    "sequence_bias": "it is not known here; logit_bias biases single tokens",
    "suppress_tokens": _MASKED,
    "begin_suppress_tokens": f"it is not known here; for the whole answer {_MASKED}",
    "encoder_repetition_penalty": "it is not known here; repetition_penalty_scope says which tokens are penalised",
    "encoder_no_repeat_ngram_size": "it is not known here; no_repeat_ngram_size looks at prompt and answer",
    "renormalize_logits": "it is not needed: probabilities are always normalised after the filters",
    "remove_invalid_values": "it is not needed: NaN is never drawn from",
    "min_tokens_to_keep": "it is always 1 here, and with beam sample one more than there are ends of the text",
    "top_h": _WARPER,
    "assistant_model": _DRAFT,
    "assistant_early_exit": _DRAFT,
    "num_beam_hyps_to_keep": "say it as n",
    "decoder_start_token_id": "say it as decoder_prompt, in ids",
    "forced_eos_token_id": "it is not known here; max_tokens ends an answer",
    "pad_token_id": "it is not needed: no row is padded",
    "bos_token_id": "it is not needed: a prompt in ids is taken as it stands",
    "attention_mask": "it is not needed: no prompt is padded",
    "past_key_values": "it cannot be handed in; prompts that begin alike share their cache by themselves",
    "logits_processor": "it is code, which is not taken from requests",
    "logits_processors": "it is code, which is not taken from requests",
    "stopping_criteria": "it is code, which is not taken from requests",
    "return_full_text": "say it as echo",
    # TGI
    "details": "say it as logprobs, return_token_ids or trace",
    "decoder_input_details": "say it as prompt_logprobs",
    "top_n_tokens": "say it as logprobs; in chat as top_logprobs",
    "truncate": "it is not known here; what does not fit is refused, never cut",
    "watermark": "it is not known here",
    "inputs": "say it as prompt",
    # vLLM, SGLang
    "truncate_prompt_tokens": "it is not known here; what does not fit is refused, never cut",
    "spaces_between_special_tokens": "it is not known here; skip_special_tokens: false shows special tokens",
    "guided_decoding_backend": "it is not for requests to choose: there is one",
    "guided_whitespace_pattern": "it is not known here; structured.grammar can say where blanks may be",
    "chat_template": "it is the server's to choose, by --chat-template",
    "enable_thinking": _TEMPLATE,
    "thinking": _TEMPLATE,
    "regex": _STRUCTURED.format(ours="regex"),
    "ebnf": f"{_STRUCTURED.format(ours='grammar')}, in Lark's form",
    "json_schema": _STRUCTURED.format(ours="json"),
    # llama.cpp, Ollama, text-generation-webui, KoboldCpp
    "grammar": f"{_STRUCTURED.format(ours='grammar')}, in Lark's form",
    "n_probs": "say it as logprobs; in chat as logprobs and top_logprobs",
    "num_ctx": "it is the server's to choose, by --max-model-len",
    "n_keep": "it is not known here; what does not fit is refused, never cut",
    "cache_prompt": "it is not needed: prompts that begin alike share their cache by themselves",
    "samplers": "say it as sampler_order",
    "dynatemp_range": _ENTROPY,
    "dynatemp_exponent": _ENTROPY,
    "mirostat": _ENTROPY,
    "mirostat_tau": _ENTROPY,
    "mirostat_eta": _ENTROPY,
    "mirostat_mode": _ENTROPY,
    "dry_multiplier": _LOOPS,
    "dry_base": _LOOPS,
    "dry_allowed_length": _LOOPS,
    "dry_penalty_last_n": _LOOPS,
    "dry_sequence_breakers": _LOOPS,
    "xtc_probability": _WARPER,
    "xtc_threshold": _WARPER,
    "tfs_z": f"{_WARPER}; typical_p is near",
    "top_a": f"{_WARPER}; min_p is near",
    "typical": "say it as typical_p",
    "rep_pen": "say it as repetition_penalty",
    "rep_pen_range": "say it as repetition_penalty_window",
    "repetition_penalty_range": "say it as repetition_penalty_window",
    # other makers
    "system": "say it as a message of role system",
    "candidate_count": "say it as n",
    "beam_width": "say it as num_beams",
    "beam_size": "say it as num_beams",
    # OpenAI's other routes
    "messages": _OTHER_ROUTE.format(ours="/v1/chat/completions"),
    "prompt": _OTHER_ROUTE.format(ours="/v1/completions"),
    "input": _OTHER_ROUTE.format(ours="/v1/responses"),
    "instructions": _OTHER_ROUTE.format(ours="/v1/responses"),
    "max_output_tokens": "it is the name in /v1/responses; here it is max_tokens",
    "reasoning": "it is the name in /v1/responses; chat_template_kwargs has what the model's chat template knows",
    "text": "it is the name in /v1/responses; here it is response_format",
}


@dataclass(frozen=True, slots=True)
class Translated:
    """A body in our names. sent_as: our path -> the name that the client gave it."""

    fields: dict[str, Any]
    sent_as: Mapping[str, str]


def translated(body: Mapping[str, Any], names: Collection[str]) -> Translated:
    """Reads aliases as what they mean to a route with the fields `names`. Raises ApiError 400 where two names of one
    field differ."""
    fields, sent_as = dict(body), {}
    for name in [name for name in body if name in ALIASES and name not in names]:
        path = next((path for path in ALIASES[name] if path.partition(".")[0] in names), None)
        if path is None:
            continue
        value = fields.pop(name)
        for ours, meant in _meant(name, path, value) if value is not None else ():
            _put(fields, ours, meant, name)
            sent_as[ours] = name
    return Translated(fields, sent_as)


def _meant(name: str, path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What the alias says, in our fields. A value that is wrong is passed on, to be refused as ours would be."""
    yield path, _READERS.get(name, _as_it_is)(value)
    if name == "eos_token_id":
        yield "ignore_eos", True  # Hugging Face's takes the place of the model's own


def _put(fields: dict[str, Any], path: str, value: Any, name: str) -> None:
    """Into a copy of the object that the path leads through; what is there and no object is left to be refused."""
    top, _, inner = path.rpartition(".")
    if top:
        held = fields.get(top)
        if held is not None and not isinstance(held, dict):
            return
        fields[top] = fields = dict(held or {})
    given = fields.get(inner)
    if given is not None and not same(given, value):
        raise ApiError(400, f"{name} and {path} are the same and must not differ", param=name)
    fields[inner] = value


def _as_it_is(value: Any) -> Any:
    return value


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _unbatched(value: Any) -> Any:
    """Hugging Face's batch of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) else value


def _window(value: Any) -> Any:
    """-1 is the whole context, for which we have 0; 0 is no penalty at all."""
    if same(value, 0):
        raise ApiError(
            400, "repeat_last_n 0 is no penalty: leave out both it and repeat_penalty", param="repeat_last_n"
        )
    return 0 if same(value, -1) else value


def _schema(value: Any) -> Any:
    """vLLM takes a schema as text, too."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _structured(value: Any) -> Any:
    """vLLM's object has null for what is not asked, and a name of its own for any object."""
    if not isinstance(value, dict):
        return value
    asked = {name: inner for name, inner in value.items() if inner is not None and inner is not False}
    if asked.get("json_object") is True:
        del asked["json_object"]
        asked.setdefault("json", {"type": "object"})
    return asked | ({"json": _schema(asked["json"])} if "json" in asked else {})


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "eos_token_id": _listed,
    "negative_prompt_ids": _unbatched,
    "repeat_last_n": _window,
    "guided_json": _schema,
    "structured_outputs": _structured,
}

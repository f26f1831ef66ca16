"""What a request asks for -> the params of the token-level steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.contract.params import Adapt, BeamSample, Contrastive, Edt, InvalidParam, LogitsParams
from decoding.contract.params.declared import Declared, declared
from decoding.contract.params.plugin import PluginStep
from server.errors import ApiError
from server.served import Served
from server.translate.asked import Asked, as_params
from server.translate.generation_defaults import forced_ends, never_said
from server.translate.table import FILTERS
from server.wire.base import Wire
from server.wire.requests import Decoding

PLAIN = tuple(
    each for each in declared(LogitsParams).values() if each.text and isinstance(each.default, float | int | str)
)
"""Fields whose wire value is the params' value as it stands, unless it is another word for the default."""


def logits_params(asked: Asked[Decoding], bad_words: tuple[tuple[int, ...], ...], served: Served) -> LogitsParams:
    """Temperature and filters have no effect where they do not act. Raises ApiError, InvalidParam."""
    wire, strategy, acts = asked.wire, asked.strategy.params, asked.warps
    values = _plain(wire, [each for each in PLAIN if acts or each.name not in FILTERS])
    if strategy is Contrastive or values.get("top_k", 0) >= served.vocab_size:
        values.pop("top_k", None)
    check_ids("allowed_token_ids", wire.allowed_token_ids, served)
    check_ids("forced_bos_token_id", None if wire.forced_bos_token_id is None else [wire.forced_bos_token_id], served)
    return LogitsParams(
        logit_bias=_logit_bias(wire, served),
        allowed_token_ids=None if wire.allowed_token_ids is None else tuple(sorted(set(wire.allowed_token_ids))),
        bad_words=bad_words + _never_said(served),
        exponential_decay_length_penalty=_decay(wire),
        edt=None if wire.edt is None else Edt(**wire.edt.model_dump(exclude_none=True)),
        adapt=None if wire.adapt is None else Adapt(**wire.adapt.model_dump(exclude_none=True)),
        min_tokens_to_keep=len(served.eos_token_ids) + 1 if strategy is BeamSample else 1,
        plugin_steps=_plugin_steps(asked),
        **_forced(wire, served),
        **(values if acts else values | {"temperature": 0.0}),
    )


def _plugin_steps(asked: Asked[Decoding]) -> tuple[PluginStep, ...]:
    given = ((step, getattr(asked.wire, name)) for name, step in asked.wire.PLUGINS.steps.items())
    built = (step(**_values(fields)) for step, fields in given if fields is not None)
    return tuple(step for step in built if asked.warps or not step.warps)


def _values(fields: Wire) -> dict[str, Any]:
    return {name: as_params(value) for name, value in fields if value is not None}


def _forced(wire: Decoding, served: Served) -> dict[str, Any]:
    """The request's word goes before the model's."""
    encoder, first = served.encoder, wire.forced_bos_token_id
    if encoder is None:
        return {"forced_eos_token_ids": forced_ends(served.generation_defaults, served.vocab_size)}
    return {
        "forced_bos_token_id": encoder.forced_bos_token_id if first is None else first,
        "forced_eos_token_ids": encoder.forced_eos_token_ids,
    }


def _never_said(served: Served) -> tuple[tuple[int, ...], ...]:
    """A model with an encoder has read its own itself."""
    if served.encoder is not None:
        return served.encoder.bad_words
    return never_said(served.generation_defaults, served.vocab_size)


def check_ids(field: str, token_ids: Sequence[int] | None, served: Served) -> None:
    """Raises ApiError 400 unless every id lies in the vocabulary."""
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < served.vocab_size:
        raise ApiError(400, f"{field} must hold token ids below {served.vocab_size}", param=field)


def _plain(wire: Decoding, fields: Sequence[Declared]) -> dict[str, Any]:
    return {each.name: value for each in fields if (value := getattr(wire, each.name)) not in (None, *each.off)}


def _logit_bias(wire: Decoding, served: Served) -> tuple[tuple[int, float], ...]:
    bias = {int(token_id): float(value) for token_id, value in (wire.logit_bias or {}).items()}
    check_ids("logit_bias", list(bias), served)
    return tuple(sorted((token_id, value) for token_id, value in bias.items() if value))


def _decay(wire: Decoding) -> tuple[int, float] | None:
    if wire.exponential_decay_length_penalty is None:
        return None
    start, factor = wire.exponential_decay_length_penalty
    if not float(start).is_integer():
        raise InvalidParam("exponential_decay_length_penalty", "must start at a whole number of tokens")
    return int(start), float(factor)

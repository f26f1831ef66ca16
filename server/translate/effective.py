"""What a request runs with, in wire names: the answer's `decoding.effective`. Neutral parameters are left out.

Sent back as a request it asks for the same. Texts are given as the client gave them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from decoding.contract.asking import Strategy
from decoding.contract.params import LogitsParams, Request, StoppingParams
from decoding.contract.params.declared import declared
from decoding.contract.params.plugin import PluginStep
from server.translate.asked import Asked
from server.translate.plan import Shown
from server.translate.table import GREEDY
from server.wire.base import at
from server.wire.requests import Decoding
from server.wire.strategies import Sed

HIDDEN = {"min_tokens_to_keep", "bad_words", "grammar", "forced_eos_token_ids", "plugin_steps"}
"""Not on the wire, or under other names."""
DERIVED_AS_THEY_ARE = {"layers", "think_token_id"}  # numbers on the wire too


def effective_params(request: Request, asked: Asked[Decoding], shown: Shown) -> dict[str, Any]:
    """Everything but the seed, which can differ between the prompts of a request."""
    return (
        _strategy(request, asked)
        | _warped(request.logits, asked.strategy)
        | _logits(request.logits, asked)
        | _stopping(request.stopping, shown)
        | _service(request, asked.wire, shown)
        | _plugins(request, asked)
    )


def _plugins(request: Request, asked: Asked[Decoding]) -> dict[str, Any]:
    """The plugins' steps, and which plugins run in which version."""
    steps, owners = {step.NAME: _fields(step) for step in request.logits.plugin_steps}, asked.wire.PLUGINS.owners
    named = (asked.strategy.name, *steps, getattr(request.strategy, "rank_by", ""))
    used = {owners[name].name: owners[name].version for name in named if name in owners}
    return {**steps, **({"plugins": used} if used else {})}


def _fields(step: PluginStep) -> dict[str, Any]:
    return {name: getattr(step, name) for name in declared(type(step))}


def _strategy(request: Request, asked: Asked[Decoding]) -> dict[str, Any]:
    values: dict[str, Any] = {} if request.strategy.n == 1 else {"n": request.strategy.n}
    values |= asked.strategy.fixed
    for name, path in asked.strategy.paths.items():
        value = _value(request, asked.wire, name, path)
        if name != "n" and value is not None:
            _put(values, path, value)
    return values


def _warped(logits: LogitsParams, strategy: Strategy) -> dict[str, Any]:
    """What makes temperature and filters act where nothing is drawn."""
    name, _, value = strategy.warped_by.partition("=")
    return {name: value == "true"} if name and logits.warps else {}


def _value(request: Request, wire: Decoding, name: str, path: str) -> Any:
    if not declared(type(request.strategy))[name].from_model or name in DERIVED_AS_THEY_ARE:
        return getattr(request.strategy, name)
    given = at(wire, path)
    if given is None and path.startswith("sed."):
        return _default(path.removeprefix("sed."))
    return given


def _default(name: str) -> Any:
    extra = Sed.model_fields[name].json_schema_extra
    return extra["default"] if isinstance(extra, dict) else None


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    """`path` may name a field of an object."""
    parent, _, name = path.rpartition(".")
    (values.setdefault(parent, {}) if parent else values)[name] = value


def _logits(logits: LogitsParams, asked: Asked[Decoding]) -> dict[str, Any]:
    changed, wire = _changed(logits, LogitsParams()), asked.wire
    is_shown = asked.strategy is GREEDY or asked.strategy.draws or logits.warps
    hidden = HIDDEN if is_shown else {*HIDDEN, "temperature"}
    values = {name: value for name, value in changed.items() if name not in hidden}
    if logits.logit_bias:
        values["logit_bias"] = {str(token_id): bias for token_id, bias in logits.logit_bias}
    for name in ("response_format", "structured") if logits.grammar is not None else ():
        if getattr(wire, name) is not None:
            values[name] = getattr(wire, name).model_dump(by_alias=True, exclude_none=True)
    if wire.bad_words:
        values["bad_words"] = wire.bad_words
    return values | {name: asdict(value) for name in ("edt", "adapt") if (value := getattr(logits, name)) is not None}


def _stopping(stopping: StoppingParams, shown: Shown) -> dict[str, Any]:
    values = {"max_tokens": stopping.max_tokens} | _changed(stopping, StoppingParams())
    if shown.stops:
        values["stop"] = shown.stops
    return values


def _service(request: Request, wire: Decoding, shown: Shown) -> dict[str, Any]:
    values: dict[str, Any] = {"logprobs": shown.logprobs, "prompt_logprobs": shown.prompt_logprobs}
    values = {name: value for name, value in values.items() if value is not None}
    if values and request.logprobs.mode != "raw":
        values["logprobs_mode"] = request.logprobs.mode
    for name in ("pause_tokens", "latent_thoughts"):
        if (beside := getattr(wire, name)) is not None:
            values[name] = beside.model_dump(exclude_none=True)
    if getattr(wire, "decoder_prompt", None) is not None:
        values["decoder_prompt"] = wire.decoder_prompt  # type: ignore[attr-defined]
    return values | {name: value for name in ("priority", "trace") if (value := getattr(request, name))}


def _changed(params: LogitsParams | StoppingParams, neutral: LogitsParams | StoppingParams) -> dict[str, Any]:
    names = params.__dataclass_fields__
    return {name: getattr(params, name) for name in names if getattr(params, name) != getattr(neutral, name)}

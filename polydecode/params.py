"""How a request says what it wants: by the wire's fields, as keywords or as SamplingParams, or by a strategy's params.

All come to the same wire fields, so that one set of checks holds for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from decoding.contract.params import StrategyParams
from decoding.contract.params.declared import Declared, FromText, declared
from polydecode.errors import InvalidRequest, refusals
from server.translate.table import STRATEGIES
from server.wire.body import parse
from server.wire.requests import CompletionFields

Fields = dict[str, Any]
ARGUMENTS = ("model", "stream", "stream_options")
"""Wire fields that say to whom a request goes or how its answer is sent, and nothing of how it is decoded."""


class SamplingParams(CompletionFields):
    """What a completion takes beside its prompt, for `generate` and `chat` alike; a strategy's fields are among it.

    `SamplingParams(temperature=0.7, top_p=0.9, n=4, max_tokens=64)`, `SamplingParams(num_beams=4, length_penalty=0.8)`.
    What was not given is left to the model's defaults. Raises InvalidRequest, a ValueError that names the field.
    """

    if not TYPE_CHECKING:

        def __init__(self, **fields: Any) -> None:
            with refusals():
                wire, _ = parse(CompletionFields, plain(fields))
            super().__init__(**wire.model_dump(exclude_unset=True, by_alias=True))

    @property
    def given(self) -> Fields:
        fields: Fields = self.model_dump(exclude_unset=True, by_alias=True)
        return fields


Params = SamplingParams | StrategyParams | Mapping[str, Any]


def fields_of(params: Params | None, keywords: Mapping[str, Any]) -> Fields:
    """The wire fields of both; a keyword goes before. Raises InvalidRequest."""
    match params:
        case None:
            given: Fields = {}
        case SamplingParams():
            given = params.given
        case StrategyParams():
            given = strategy_fields(params)
        case Mapping():
            given = dict(params)
        case _:
            raise InvalidRequest(
                f"params must be SamplingParams, a strategy's or a mapping, not {type(params).__name__}"
            )
    fields = given | dict(keywords)
    for name in ARGUMENTS:
        if fields.pop(name, None) is not None:
            raise InvalidRequest(f"{name} has no meaning among the params", name)
    told: Fields = plain(fields)
    return told


def chat_fields(fields: Fields) -> Fields:
    """A chat's `logprobs` says whether, its `top_logprobs` how many; a number, as completions have it, says both."""
    number = fields.get("logprobs")
    if isinstance(number, bool) or not isinstance(number, int):
        return fields
    return {"top_logprobs": number} | fields | {"logprobs": True}


def strategy_fields(params: StrategyParams) -> Fields:
    """The wire fields that ask for it. Raises InvalidRequest on ids that the wire knows only as a text."""
    strategy = next((each for each in STRATEGIES if each.params is type(params)), None)
    if strategy is None:
        raise InvalidRequest(f"{type(params).__name__} is the params of no strategy that generates")
    fields: Fields = dict(strategy.fixed)
    if params.WITHIN:
        fields[params.WITHIN] = {}
    for each in declared(type(params)).values():
        value = getattr(params, each.name)
        if each.path in strategy.when or each.default is MISSING or value != each.default:
            _put(fields, each.path, _on_the_wire(each, value))
    return fields


def plain(value: Any) -> Any:
    """As JSON has it: lists for tuples, strings for keys, maps for objects."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(inner) for inner in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {key: inner for key, inner in asdict(value).items() if inner is not None}
    return value


def _on_the_wire(each: Declared, value: Any) -> Any:
    text = each.mark(FromText)
    is_text = (text is not None and not text.begins) or (each.path in ("sed.question", "sed.yes", "sed.no"))
    if is_text:
        name, _, inner = each.path.partition(".")
        raise InvalidRequest(f"{each.path} is given as a text: {name}={{'{inner}': …}}", each.path)
    return list(value) if isinstance(value, tuple) else value


def _put(fields: Fields, path: str, value: Any) -> None:
    parent, _, name = path.rpartition(".")
    (fields[parent] if parent else fields)[name] = value

"""Wire request -> the params of the strategy it asks for, by the names in `combinations.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from decoding.contract.answers import compile_answer
from decoding.contract.params import Guided, InvalidParam, StrategyParams
from server.translate.mode import num_beams
from server.translate.table import Method
from server.translate.words import placeholders
from server.wire.base import at
from server.wire.requests import Decoding


def strategy_params(
    method: Method,
    wire: Decoding,
    derived: Mapping[str, Any],
    prompt_ids: Sequence[int],
    special_ids: frozenset[int] = frozenset(),
) -> StrategyParams:
    """derived: what `words.py` made of the texts. Raises InvalidParam."""
    given = {name: at(wire, path) for name, path in method.paths.items() if name not in placeholders(method)}
    values = {name: value for name, value in given.items() if value is not None}
    values |= _own(method, wire, prompt_ids[-1]) | dict(derived)
    if values.get("eval_before"):
        values["eval_before"] += tuple(token_id for token_id in prompt_ids if token_id not in special_ids)
    return method.params(**values)


def counted_params(method: Method, wire: Decoding) -> StrategyParams:
    """The same without a model, good for its bounds and its rows. Raises InvalidParam."""
    return strategy_params(method, wire, placeholders(method), (0,))


def check_regex(wire: Decoding, max_chars: int) -> None:
    """Raises InvalidParam unless the answer's pattern is one that the strategy takes."""
    pattern = at(wire, "cot_decoding.answer_regex")
    if pattern is None:
        return
    if len(pattern) > max_chars:
        raise InvalidParam("cot_decoding.answer_regex", f"must have at most {max_chars} characters")
    compile_answer(pattern)


def _own(method: Method, wire: Decoding, last_id: int) -> dict[str, Any]:
    """What has another name or no name on the wire."""
    own: dict[str, Any] = {}
    if "n" in method.paths:
        own["n"] = wire.num_choices
    if "num_beams" in method.paths and (width := num_beams(wire)) is not None:
        own["num_beams"] = width
    if method.params is Guided:
        own["negative_ids"] = (last_id,)
    return own

"""Wire request -> the params of the strategy it asks for, by the names in `table.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from decoding.contract.answers import compile_answer
from decoding.contract.params import CotDecoding, Guided, InvalidParam, KlGuided, Sed, StrategyParams
from server.translate.asked import num_beams
from server.translate.table import Strategy
from server.translate.texts import placeholders
from server.wire.base import at
from server.wire.requests import Decoding
from server.wire.strategies import KL_SIGMA


def strategy_params(
    method: Strategy,
    wire: Decoding,
    derived: Mapping[str, Any],
    prompt_ids: Sequence[int],
    special_ids: frozenset[int] = frozenset(),
) -> StrategyParams:
    """derived: what `texts.py` made of the texts. Raises InvalidParam."""
    given = {name: at(wire, path) for name, path in method.paths.items() if name not in placeholders(method)}
    values = {name: value for name, value in given.items() if value is not None}
    values |= _own(method, wire, prompt_ids[-1]) | dict(derived)
    if values.get("eval_before"):
        values["eval_before"] += tuple(token_id for token_id in prompt_ids if token_id not in special_ids)
    return method.params(**values)


def counted_params(method: Strategy, wire: Decoding) -> StrategyParams:
    """The same without a model, good for its bounds and its rows. Raises InvalidParam."""
    return strategy_params(method, wire, placeholders(method), (0,))


def num_beside(strategy: StrategyParams) -> int:
    """Positions that a row needs beside prompt and answer."""
    if isinstance(strategy, CotDecoding) and strategy.suffix_ids:
        return len(strategy.suffix_ids) + strategy.max_answer
    return len(strategy.eval_ids) if isinstance(strategy, Sed) else 0


def num_second_context(strategy: StrategyParams) -> int:
    """Length of what a second row opens with, to which the answer is added as to the first."""
    if isinstance(strategy, Guided):
        return len(strategy.negative_ids)
    if isinstance(strategy, Sed):
        return len(strategy.eval_before)
    return len(strategy.context_ids) if isinstance(strategy, KlGuided) else 0


def check_regex(wire: Decoding, max_chars: int) -> None:
    """Raises InvalidParam unless the answer's pattern is one that the strategy takes."""
    pattern = at(wire, "cot_decoding.answer_regex")
    if pattern is None:
        return
    if len(pattern) > max_chars:
        raise InvalidParam("cot_decoding.answer_regex", f"must have at most {max_chars} characters")
    compile_answer(pattern)


def _own(method: Strategy, wire: Decoding, last_id: int) -> dict[str, Any]:
    """What has another name or no name on the wire."""
    own: dict[str, Any] = {}
    if "n" in method.paths:
        own["n"] = wire.num_choices
    if "num_beams" in method.paths and (width := num_beams(wire)) is not None:
        own["num_beams"] = width
    if method.params is Guided:
        own["negative_ids"] = (last_id,)
    if wire.kl_guided is not None and wire.kl_guided.sigma is None:
        own["sigma"] = KL_SIGMA
    return own

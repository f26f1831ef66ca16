"""Which strategy a request asks for: read from its fields by `table.py`, once, and handed on.

A senseless combination is an ApiError 400 that names both fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from decoding.contract.params import Guided, LogitsParams, StrategyParams
from decoding.contract.params.declared import declared
from server.errors import ApiError
from server.translate.table import (
    EXCLUSIONS,
    FILTERS,
    GREEDY,
    GREEDY_KEYS,
    NEEDS,
    OFF,
    SAMPLING,
    SEARCHES,
    Strategy,
)
from server.wire.base import at, same
from server.wire.requests import Decoding

Body_co = TypeVar("Body_co", bound=Decoding, covariant=True)
Body = TypeVar("Body", bound=Decoding)
Keys = Mapping[str, str]

_OWNERS: Mapping[str, Strategy] = {name: each for each in reversed(SEARCHES) for name in each.own_fields}
"""Top-level wire field -> the strategy it is a parameter of, the first where it is of several."""


@dataclass(frozen=True)
class Asked(Generic[Body_co]):
    """What a request asks for.

    wire: the request as it was parsed.
    keys: each key of the table that it bears -> the wire field to name for it.
    strategy: the one that these keys ask for.
    """

    wire: Body_co
    keys: Keys
    strategy: Strategy

    @cached_property
    def params(self) -> StrategyParams:
        """The strategy's params with placeholders, good for their bounds and their rows. Raises InvalidParam."""
        own = declared(self.strategy.params).values()
        return self.params_for((0,), {each.name: each.from_model.placeholder for each in own if each.from_model})

    def params_for(
        self, prompt_ids: Sequence[int], derived: Mapping[str, Any], special_ids: frozenset[int] = frozenset()
    ) -> StrategyParams:
        """The strategy's params for one prompt. derived: what `texts.py` made of the texts. Raises InvalidParam."""
        own = declared(self.strategy.params).values()
        given = {each.name: at(self.wire, each.path) for each in own if not each.from_model}
        values = {name: as_params(value) for name, value in given.items() if value is not None}
        values |= self._own(prompt_ids[-1]) | dict(derived)
        if values.get("eval_before"):
            values["eval_before"] += tuple(token_id for token_id in prompt_ids if token_id not in special_ids)
        return self.strategy.params(**values)

    @property
    def warps(self) -> bool:
        """Whether temperature and filters act."""
        if self.strategy.draws:
            return not _is_greedy(self.keys)
        return self.strategy.warped_by in self.keys and "temperature=0" not in self.keys

    def _own(self, last_id: int) -> dict[str, Any]:
        """What has another name or no name on the wire."""
        wire, names = self.wire, self.strategy.paths
        own: dict[str, Any] = {}
        if "n" in names:
            own["n"] = wire.num_choices
        if "num_beams" in names and (width := _num_beams(wire)) is not None:
            own["num_beams"] = width
        if self.strategy.params is Guided:
            own["negative_ids"] = (last_id,)
        return own


def as_params(value: Any) -> Any:
    """Lists as params have them."""
    return tuple(map(as_params, value)) if isinstance(value, list) else value


def asked_of(wire: Body) -> Asked[Body]:
    """Raises ApiError 400 when the request's fields do not go together."""
    keys = _keys(wire)
    strategy = _strategy(keys)
    for key, problem in _problems(keys, strategy):
        raise _refused(keys, key, problem)
    return Asked(wire, keys, strategy)


def _keys(wire: Decoding) -> dict[str, str]:
    keys = {name: name for name, value in wire if value is not None and not _is_off(name, value)}
    _note_choices(keys, wire)
    _note_beams(keys, wire)
    _note_sampling(keys, wire)
    _note_width(keys, wire)
    if wire.response_format is not None and wire.response_format.type == "text":
        del keys["response_format"]
    if wire.speculative is None and "num_assistant_tokens" in keys:
        keys["speculative"] = "num_assistant_tokens"
    return keys


def _is_greedy(keys: Keys) -> bool:
    return any(key in keys for key in GREEDY_KEYS)


def _is_off(name: str, value: Any) -> bool:
    return any(same(value, off) for off in OFF.get(name, ()))


def _note_choices(keys: dict[str, str], wire: Decoding) -> None:
    """num_return_sequences is n; a best_of that equals n ranks nothing."""
    if "num_return_sequences" in keys:
        keys.setdefault("n", keys.pop("num_return_sequences"))
    if wire.best_of == wire.num_choices and wire.best_of_rank is None:
        del keys["best_of"]


def _note_beams(keys: dict[str, str], wire: Decoding) -> None:
    """use_beam_search takes best_of, else n, for num_beams (as with vLLM)."""
    if "use_beam_search" not in keys:
        return
    if wire.num_beams is None:
        keys.pop("best_of", None)
    if _num_beams(wire) == 1:
        del keys["use_beam_search"]
    else:
        keys["num_beams"] = "use_beam_search" if wire.num_beams is None else "num_beams"


def _note_sampling(keys: dict[str, str], wire: Decoding) -> None:
    if wire.temperature is not None and wire.temperature < LogitsParams.GREEDY_BELOW:
        keys.pop("temperature", None)
        keys["temperature=0"] = "temperature"
    elif wire.temperature == 1:
        keys.pop("temperature", None)
    if wire.do_sample is not None:
        del keys["do_sample"]
        keys[f"do_sample={str(wire.do_sample).lower()}"] = "do_sample"


def _note_width(keys: dict[str, str], wire: Decoding) -> None:
    """A search of width 1 is greedy, as with Hugging Face, unless the request samples or searches otherwise."""
    if wire.do_sample or not all(each.draws for each in SEARCHES if keys.keys() >= set(each.when)):
        return
    if _num_beams(wire) == 1:
        keys["num_beams=1"] = "use_beam_search" if wire.num_beams is None else "num_beams"
    if wire.penalty_alpha == 0:
        keys["penalty_alpha=0"] = "penalty_alpha"


def _num_beams(wire: Decoding) -> int | None:
    """The beams that are asked for, by either of the two ways."""
    if wire.num_beams is None and wire.use_beam_search:
        return wire.best_of or wire.num_choices
    return wire.num_beams


def _strategy(keys: Keys) -> Strategy:
    """Of the strategies asked for, the one that asks for most; two that ask for different things are one too many."""
    matching = [each for each in SEARCHES if keys.keys() >= set(each.when)]
    most = [each for each in matching if not any(set(each.when) < set(other.when) for other in matching)]
    if not most:
        return GREEDY if _is_greedy(keys) else SAMPLING
    if len(most) > 1:
        one, two = (next(key for key in a.when if key not in b.when) for a, b in (most[:2], most[1::-1]))
        raise _refused(keys, one, f"has no meaning with {_shown(keys, two)}: a request runs one strategy")
    return most[0]


def _problems(keys: Keys, strategy: Strategy) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it), the gravest first."""
    yield from ((strategy.when[0], f"needs {key}") for key in strategy.requires if key not in keys)
    yield from _owned_by_others(keys, strategy)
    needs = (need for need in NEEDS if need.key in keys and need.needs not in keys)
    yield from ((need.key, f"has no meaning without {need.needs}") for need in needs)
    yield from _excluded(keys, strategy)


def _owned_by_others(keys: Keys, strategy: Strategy) -> Iterator[tuple[str, str]]:
    """Fields that are parameters of a strategy that is not asked for."""
    mine = {*strategy.own_fields, *FILTERS}
    for key in keys:
        owner = _OWNERS.get(key)
        if owner is None or key in mine:
            continue
        missing = next((each for each in owner.when if each not in keys), None)
        if missing is not None:
            yield key, f"has no meaning without {missing.replace('=', ' ')}"
        else:
            yield key, f"has no meaning with {_shown(keys, strategy.when[-1])}: {strategy.name} does not take it"


def _excluded(keys: Keys, strategy: Strategy) -> Iterator[tuple[str, str]]:
    """What is there and does not go together. Filters ask nothing of greedy decoding."""
    for exclusion in (*EXCLUSIONS, *(replace(each, others=strategy.when[:1]) for each in strategy.excludes)):
        for key in exclusion.keys:
            if key in keys and not (key in FILTERS and _is_greedy(keys)) and keys.keys().isdisjoint(exclusion.unless):
                others = (other for other in exclusion.others if other in keys)
                yield from ((key, f"has no meaning with {_shown(keys, o)}: {exclusion.reason}") for o in others)


def _shown(keys: Keys, key: str) -> str:
    """temperature=0 -> "temperature 0"; an alias by its own name."""
    field = keys.get(key, key)
    return key.replace("=", " ") if field in {key, key.partition("=")[0]} else field


def _refused(keys: Keys, key: str, message: str) -> ApiError:
    field = keys.get(key, key)
    return ApiError(400, f"{field} {message}", param=field)

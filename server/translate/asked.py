"""Applies the tables of `table.py` to a request: which strategy it asks for, and whether all it asks for fits.

A senseless combination is an ApiError 400 that names both fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from decoding.contract.params import LogitsParams
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
    Exclusion,
    Strategy,
)
from server.wire.base import same
from server.wire.requests import Decoding

Keys = Mapping[str, str]
"""Each key that a request bears -> the wire field to name for it."""


def mode_of(wire: Decoding) -> Strategy:
    """The strategy that a request asks for. Raises ApiError 400 when its fields do not go together."""
    keys = keys_of(wire)
    method = _method(keys)
    for key, problem in _problems(keys, method):
        raise _refused(keys, key, problem)
    return method


def keys_of(wire: Decoding) -> dict[str, str]:
    """What the request asks for."""
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


def is_greedy(keys: Keys) -> bool:
    return any(key in keys for key in GREEDY_KEYS)


def warps(keys: Keys, method: Strategy) -> bool:
    """Whether temperature and filters act in a request that runs `method`."""
    return not is_greedy(keys) if method.draws else method.warped_by in keys and "temperature=0" not in keys


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
    if num_beams(wire) == 1:
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
    if wire.do_sample or not all(method.draws for method in SEARCHES if keys.keys() >= set(method.when)):
        return
    if num_beams(wire) == 1:
        keys["num_beams=1"] = "use_beam_search" if wire.num_beams is None else "num_beams"
    if wire.penalty_alpha == 0:
        keys["penalty_alpha=0"] = "penalty_alpha"


def num_beams(wire: Decoding) -> int | None:
    """The beams that are asked for, by either of the two ways."""
    if wire.num_beams is None and wire.use_beam_search:
        return wire.best_of or wire.num_choices
    return wire.num_beams


def _method(keys: Keys) -> Strategy:
    """Of the methods asked for, the one that asks for most; two that ask for different things are one too many."""
    matching = [m for m in SEARCHES if keys.keys() >= set(m.when)]
    most = [m for m in matching if not any(set(m.when) < set(other.when) for other in matching)]
    if not most:
        return GREEDY if is_greedy(keys) else SAMPLING
    if len(most) > 1:
        one, two = (next(key for key in a.when if key not in b.when) for a, b in (most[:2], most[1::-1]))
        raise _refused(keys, one, f"has no meaning with {_shown(keys, two)}: a request runs one strategy")
    return most[0]


def _problems(keys: Keys, method: Strategy) -> Iterator[tuple[str, str]]:
    """(key, what is wrong with it), the gravest first."""
    yield from ((method.when[0], f"needs {key}") for key in method.requires if key not in keys)
    yield from _owned_by_others(keys, method)
    yield from (
        (need.key, f"has no meaning without {need.needs}")
        for need in NEEDS
        if need.key in keys and need.needs not in keys
    )
    yield from _excluded(keys, method)


def _owned_by_others(keys: Keys, method: Strategy) -> Iterator[tuple[str, str]]:
    """Fields that are parameters of a strategy that is not asked for."""
    mine = {*method.own_fields, *FILTERS}
    for key in keys:
        owner = next((other for other in SEARCHES if key in other.own_fields), None)
        if owner is None or key in mine:
            continue
        missing = next((each for each in owner.when if each not in keys), None)
        if missing is not None:
            yield key, f"has no meaning without {missing.replace('=', ' ')}"
        else:
            yield key, f"has no meaning with {_shown(keys, method.when[-1])}: {method.name} does not take it"


def _excluded(keys: Keys, method: Strategy) -> Iterator[tuple[str, str]]:
    """What is there and does not go together. Filters ask nothing of greedy decoding."""
    for exclusion in (*EXCLUSIONS, *(_of(each, method) for each in method.excludes)):
        for key in exclusion.keys:
            if key in keys and not (key in FILTERS and is_greedy(keys)) and keys.keys().isdisjoint(exclusion.unless):
                others = (other for other in exclusion.others if other in keys)
                yield from ((key, f"has no meaning with {_shown(keys, o)}: {exclusion.reason}") for o in others)


def _of(exclusion: Exclusion, method: Strategy) -> Exclusion:
    return replace(exclusion, others=(method.when[0],))


def _shown(keys: Keys, key: str) -> str:
    """temperature=0 -> "temperature 0"; an alias by its own name."""
    field = keys.get(key, key)
    return key.replace("=", " ") if field in {key, key.partition("=")[0]} else field


def _refused(keys: Keys, key: str, message: str) -> ApiError:
    field = keys.get(key, key)
    return ApiError(400, f"{field} {message}", param=field)

"""A plugin's strategy, whose Moves are looked at before the engine does them: what is wrong with one fails its request.

It may be an object with `begin` and `step`, or a generator that yields Moves and is sent Observations.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, cast

from decoding.contract.params import Request
from decoding.seam import Emit, Feed, Finish, Move, Observation, Open, RowId, Strategy, TraceEvent


class BadMove(ValueError):
    """What no strategy may do."""


class Steps:
    """A generator as a strategy. One that returns ends the request with what it returns, if anything."""

    def __init__(self, moves: Generator[Move, Observation, Move | None]) -> None:
        self._moves = moves

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return next(self._moves)

    def step(self, seen: Observation) -> Move:
        try:
            return self._moves.send(seen)
        except StopIteration as end:
            return end.value or Move()


class ForeignStrategy:
    """vocab_size: token ids are below it."""

    def __init__(self, request: Request, decoding: Any, vocab_size: int) -> None:
        self._strategy: Strategy = Steps(decoding) if isinstance(decoding, Generator) else cast(Strategy, decoding)
        self._request = request
        self._vocab_size = vocab_size
        self._held: frozenset[RowId] = frozenset()
        self._unfinished = set(range(request.strategy.n))
        self._has_prompt = request.logprobs.prompt is None

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return self._checked(self._strategy.begin(prompt_ids), frozenset())

    def step(self, seen: Observation) -> Move:
        rows = frozenset(view.row for view in seen.rows)
        return self._checked(self._strategy.step(seen), rows | self._held)

    def _checked(self, move: Move, alive: frozenset[RowId]) -> Move:
        """The Move in plain numbers. Raises BadMove."""
        if not isinstance(move, Move):
            raise BadMove(f"a strategy answers with a Move and not with a {type(move).__name__}")
        self._check_rows(move, alive)
        self._held = frozenset(move.hold)
        emits = tuple(self._checked_emit(emit) for emit in move.emit)
        self._has_prompt |= move.prompt is not None
        if not move.feeds and self._unfinished:
            raise BadMove(f"the last Move leaves choice {min(self._unfinished)} without its Finish")
        if not move.feeds and not self._has_prompt:
            raise BadMove("the request asks for its prompt's log-probs and no Move has them")
        trace = tuple(TraceEvent(int(e.step), str(e.kind), _plain(e.values)) for e in move.trace)
        return Move(move.feeds, move.hold, emits, move.prompt, int(move.drafted), int(move.accepted), trace)

    def _check_rows(self, move: Move, alive: frozenset[RowId]) -> None:
        parents = (feed.parent for feed in move.feeds if not isinstance(feed.parent, Open))
        for row in (*parents, *move.hold):
            if row not in alive:
                raise BadMove("continues or holds a row that is gone: the Move before neither fed nor held it")
        num_rows, most = len(move.feeds) + len(set(move.hold)), sum(self._request.max_rows_in.values())
        if move.feeds and num_rows > most:
            raise BadMove(f"has {num_rows} rows alive, and its max_rows are {most}")
        for feed in move.feeds:
            self._check_ids((*feed.tokens, *_read_ids(feed)))

    def _checked_emit(self, emit: Emit) -> Emit:
        choice = int(emit.choice)
        if choice not in self._unfinished:
            raise BadMove(f"says something of choice {choice}, which is over or was never asked for")
        ids, logprobs, top = tuple(map(int, emit.token_ids)), emit.logprobs, emit.top
        self._check_ids(ids)
        wants = self._request.logprobs.output is not None
        if {logprobs is not None, top is not None} != {wants}:
            raise BadMove("emits log-probs that nobody asked for" if not wants else "emits tokens without log-probs")
        if wants and not len(ids) == len(logprobs or ()) == len(top or ()):
            raise BadMove("emits more or fewer log-probs than tokens")
        if emit.finish is not None:
            self._unfinished.remove(choice)
        return Emit(
            choice,
            ids,
            None if logprobs is None else tuple(map(float, logprobs)),
            None if top is None else tuple(tuple((int(i), float(p)) for i, p in each) for each in top),
            tuple(map(float, emit.raw_logprobs)),
            None if emit.finish is None else _plain_finish(emit.finish),
        )

    def _check_ids(self, ids: Iterable[int]) -> None:
        for token_id in ids:
            if not 0 <= token_id < self._vocab_size:
                raise BadMove(f"names token {token_id}, and there are {self._vocab_size}")


def _read_ids(feed: Feed) -> tuple[int, ...]:
    return (*feed.want.gather, *feed.inner.gather)


def _plain_finish(finish: Finish) -> Finish:
    score = None if finish.score is None else float(finish.score)
    return Finish(finish.reason, finish.stop_reason, score, tuple((str(n), _plain(f)) for n, f in finish.figures))


def _plain(value: Any) -> Any:
    """What can be sent as JSON. Raises BadMove."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, Sequence):
        return [_plain(inner) for inner in value]
    if isinstance(value, int | float) and math.isfinite(value):
        return value
    raise BadMove(f"tells of a {type(value).__name__}: only finite numbers, texts, lists and maps can be told")

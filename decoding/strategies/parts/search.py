"""What the searches over paths have in common: the prompt, walking down the best scores, and their trace.

feed the prompt; repeat: advance by what the rows of the last move read
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from decoding.contract.params import LogitsParams, Request
from decoding.logits.step import EXCLUDED
from decoding.seam import Json, Move, Observation, RowView, TraceEvent, Want
from decoding.stopping import Stopping
from decoding.strategies.parts.hypotheses import Answers, Path
from decoding.strategies.parts.prompt import open_prompt, prompt_scores
from decoding.strategies.parts.report import Report, Token

Extension = tuple[int, Path]
"""The number of the path that is continued, and what it becomes."""

MOST_LISTED = 512
"""Best continuations that a row lists. Who may have to look at more reads all scores, and as far down as it must."""


class Search(ABC):
    """One request's search for its n best outputs."""

    def __init__(self, request: Request, stopping: Stopping) -> None:
        self._request = request
        self._report = Report(request)
        self._stopping = stopping
        self._n = request.strategy.n
        self._want = self._wanted()
        self._answers = Answers(self._report, self._n)
        self._num_steps = 0

    @abstractmethod
    def _wanted(self) -> Want:
        """What to read at the end of every row."""

    @abstractmethod
    def _advance(self, rows: Sequence[RowView]) -> Move:
        """The next Move. The first call gets the prompt's row, the others the rows of the Move before."""

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return Move((open_prompt(self._request, self._want),))

    def step(self, seen: Observation) -> Move:
        self._num_steps += 1
        if self._num_steps > 1:
            return self._advance(seen.rows)
        prompt = prompt_scores(self._request, seen.rows[0].readings)
        return dataclasses.replace(self._advance(seen.rows), prompt=prompt)

    def _path(self, parent: Path, token: Token, score: float) -> Path:
        """`parent` and one more token."""
        progress, finish = self._stopping.push(parent.progress, token.id)
        return Path(token, parent, score, progress, finish)

    def _event(self, kind: str, values: dict[str, Json]) -> tuple[TraceEvent, ...]:
        """A trace of this step, where the request asked for one."""
        return (TraceEvent(self._num_steps, kind, values),) if self._request.trace else ()


def descending(scores: np.ndarray, first: int) -> Iterator[int]:
    """The ids of scores [vocab] that are not excluded, best first, the lower id first among equals.

    Sorted as far as they are asked for: `first` of them, then four times as many, and so on.
    """
    count, done = max(first, 1), 0
    while True:
        ids = best_ids(scores, count)
        yield from ids[done:]
        if len(ids) < count:
            return
        count, done = 4 * count, len(ids)


def best_ids(scores: np.ndarray, count: int) -> list[int]:
    """The ids of the `count` best scores [vocab] that are not excluded, best first, the lower id first among equals."""
    count = min(count, len(scores))
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    ids = np.flatnonzero((scores >= threshold) & (scores > EXCLUDED))
    best: list[int] = ids[np.lexsort((ids, -scores[ids]))][:count].tolist()
    return best


def is_plain(request: Request) -> bool:
    """Whether surely no processor changes a score; temperature and filters are no processors."""
    logits = request.logits
    neutral = LogitsParams(
        temperature=logits.temperature,
        top_k=logits.top_k,
        top_p=logits.top_p,
        min_p=logits.min_p,
        min_tokens_to_keep=logits.min_tokens_to_keep,
    )
    return logits == neutral and request.stopping.min_tokens == 0


def described(extensions: Sequence[Extension], num_parents: int) -> dict[str, Json]:
    """For a trace: the paths that go on or end, each with its parent's number, and the parents that nothing follows."""
    parents = {parent for parent, _ in extensions}
    return {
        "born": [_described(e) for e in extensions if e[1].finish is None],
        "finished": [_described(e) for e in extensions if e[1].finish is not None],
        "dropped": [parent for parent in range(num_parents) if parent not in parents],
    }


def _described(extension: Extension) -> dict[str, Json]:
    parent, path = extension
    return {"parent": parent, "token": path.token_ids[0], "score": path.score}

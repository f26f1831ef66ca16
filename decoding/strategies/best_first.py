"""Best-first beam search (Meister et al. 2020, arXiv 2007.03909; time-synchronised queues of rycolab/bfbs).

    Q_t: the open paths of length t, best first; a beam has K places at every t
    pop the best of all Q; it takes a place at t
        finished: it keeps a place at every later t, as a finished hypothesis stays in its beam; it is a result
        else: feed it; its K best continuations enter Q_{t+1}
    Q_t holds no more paths than there are places left at t; when none is left, all shorter open paths are dropped

A score s(y) only falls as y grows. So the paths popped are those that beam search keeps, where finished hypotheses stay
in the beam and the search ends when the n best of it are finished; and no path is fed that beam search would drop. This
breaks only where a processor lifts a log-prob above 0 (a positive bias); then the search is merely best-first.

With a length penalty, finished paths are ranked by s(y) / |Y| ** alpha, which may also rise. The search then goes on
until it has the beam's K results, or no open path y can reach the n-th best of them. It can reach s(y) / L ** alpha at
most: L = max_tokens for alpha > 0, else |Y|.

A child has no row of its own before it is popped: its parent's row is held until then. When there are more than
`max_rows` rows, that of the worst parent is dropped; its children are then fed from the nearest ancestor with a row.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from decoding.contract.params import BestFirst, Request, StrategyParams
from decoding.seam import Feed, Figure, Json, Move, Reading, RowId, RowView, Scores, Tools, TraceEvent, Want
from decoding.stopping import Stopping
from decoding.strategies.parts.hypotheses import Hypothesis, Path
from decoding.strategies.parts.ranking import LengthPenalty
from decoding.strategies.parts.search import Search


class BestFirstStrategy(Search):
    PARAMS: ClassVar[type[StrategyParams]] = BestFirst

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        params = request.strategy
        assert isinstance(params, BestFirst)
        self._params = params
        super().__init__(request, stopping)
        self._penalty = LengthPenalty(params.length_penalty)
        self._queues: dict[int, list[Path]] = {}  # length -> best first
        self._popped: Counter[int] = Counter()  # length -> how many
        self._results: list[Hypothesis] = []
        self._rows: dict[Path, RowId] = {}
        self._num_queued: Counter[Path] = Counter()  # path -> its children that wait
        self._fed = self._answers.root
        self._num_forwards = 1
        self._depth = 0  # of the longest path fed

    def _wanted(self) -> Want:
        return self._report.want(top_k=self._params.num_beams, scores=Scores.BEAM)

    def _advance(self, rows: Sequence[RowView]) -> Move:
        self._rows[self._fed] = rows[0].row
        self._enqueue(self._fed, rows[0].last)
        trace: list[TraceEvent] = []
        while not self._is_over():
            path = self._pop()
            trace += self._event("popped", self._described(path))
            if path.finish is None:
                return dataclasses.replace(self._feed(path), emit=self._answers.settle(), trace=tuple(trace))
            self._finish(path)
        return Move(emit=self._answers.end(self._results, self._figures()), trace=tuple(trace))

    def _enqueue(self, parent: Path, reading: Reading) -> None:
        for token, score in self._report.candidates(reading, self._params.num_beams):
            child = self._path(parent, token, parent.score + score)
            insort(self._queues.setdefault(child.length, []), child, key=lambda path: -path.score)
            self._num_queued[parent] += 1
            self._answers.keep(child)
        self._answers.drop(parent)
        self._trim()

    def _pop(self) -> Path:
        """The best of all queues; it takes its place in the beam."""
        path = max((q for q in self._queues.values() if q), key=lambda queue: queue[0].score).pop(0)
        self._leave(path)
        self._popped[path.length] += 1
        self._trim()
        return path

    def _finish(self, path: Path) -> None:
        hypothesis = Hypothesis(path, self._penalty.score(path.score, path.length))
        self._results = sorted([*self._results, hypothesis], key=lambda h: -h.score)
        for beaten in self._results[self._n :]:
            self._answers.drop(beaten.path)
        self._trim()

    def _places(self, length: int) -> int:
        """How many more paths of that length the beam has places for."""
        return self._params.num_beams - self._popped[length] - sum(h.path.length < length for h in self._results)

    def _trim(self) -> None:
        """Forget what has no place in the beam any more."""
        for length in sorted(self._queues, reverse=True):
            num_places = max(self._places(length), 0)
            worst, self._queues[length] = self._queues[length][num_places:], self._queues[length][:num_places]
            if not num_places:
                worst += [path for shorter in self._queues if shorter < length for path in self._queues[shorter]]
                self._queues = {t: q for t, q in self._queues.items() if t > length}
            for path in worst:
                self._leave(path)
                self._answers.drop(path)
            if not num_places:
                break

    def _leave(self, path: Path) -> None:
        """The path is in no queue any more."""
        assert path.parent is not None
        self._num_queued[path.parent] -= 1

    def _is_over(self) -> bool:
        heads = [(length, queue[0].score) for length, queue in self._queues.items() if queue]
        if not heads or len(self._results) == self._params.num_beams:
            return True
        if len(self._results) < self._n:
            return False
        longest = self._stopping.max_tokens
        bound = max(self._penalty.bound(score, length, longest) for length, score in heads)
        return bound <= self._results[self._n - 1].score

    def _feed(self, path: Path) -> Move:
        """Continue the row of its nearest ancestor that has one; the other rows wait for their children."""
        tokens, ancestor = list(path.token_ids), path.parent
        while ancestor is not None and ancestor not in self._rows:
            tokens, ancestor = [*ancestor.token_ids, *tokens], ancestor.parent
        assert ancestor is not None
        feed = Feed(self._rows[ancestor], tuple(tokens), want=self._want)
        root = self._answers.root
        waiting = sorted(
            (p for p in self._rows if self._num_queued[p] or p is root), key=lambda p: (p is not root, -p.score)
        )
        self._rows = {p: self._rows[p] for p in waiting[: self._params.max_rows - 1]}
        self._fed = path
        self._depth = max(self._depth, path.length)
        self._num_forwards += 1
        return Move((feed,), hold=tuple(self._rows.values()))

    def _figures(self) -> tuple[tuple[str, Figure], ...]:
        """forwards: rows fed. forwards_saved: how many more a beam search of that depth feeds, where no other beam but
        the results finishes on the way."""
        finished = sorted(h.path.length for h in self._results)
        width = (self._params.num_beams - bisect_right(finished, t) for t in range(1, self._depth + 1))
        return (("forwards", self._num_forwards), ("forwards_saved", 1 + sum(width) - self._num_forwards))

    def _described(self, path: Path) -> dict[str, Json]:
        num_waiting = sum(len(queue) for queue in self._queues.values())
        return {"length": path.length, "token": path.token_ids[0], "score": path.score, "waiting": num_waiting}

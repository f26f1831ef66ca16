"""Beam search with the finish semantics of Hugging Face's `_beam_search` (transformers 4.55 and 5), token for token.

    rank all y . v by s(y) + log p(v | y); take the M = max(2, 1 + number of ending ids) * K best
    those that end: if among the first K of the M, they join the finished ones, by s / lp(|Y|) + cp; keep K of these
    the K best that do not end are the next beams
    over: K finished and no beam can beat the worst of them, or early_stopping and K finished, or all M end

Beyond the first K of the M, candidates that surely end are skipped: they can neither finish nor go on.

log p: the processed scores, not normalised again, as there. Where the request has a temperature or filters: log_softmax
of what its whole pipeline leaves of the logits; still nothing is drawn. A candidate excluded by a processor is never
taken, so there may be fewer than K beams (Hugging Face may fill them with candidates at -inf).

lp and cp: Wu et al. 2016 (arXiv 1609.08144). A beam that goes on may still attend to more, which raises its cp; so
pruning and the bound on what a beam can reach leave cp out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import islice
from typing import ClassVar

from decoding.contract.params import Beam, BeamSample, Request, StrategyParams
from decoding.logits.step import EXCLUDED
from decoding.seam import Feed, Move, Reading, RowView, Scores, Tools, Want
from decoding.stopping import Stopping
from decoding.strategies.parts.coverage import Coverage
from decoding.strategies.parts.hypotheses import Hypothesis, Path
from decoding.strategies.parts.ranking import LengthPenalty
from decoding.strategies.parts.report import Token
from decoding.strategies.parts.search import MOST_LISTED, Extension, Search, descending, described

Continuation = tuple[float, int, int, Token]
"""-score of the path, its beam, the token's rank there, the token: in the order of their ranking."""


class BeamStrategy(Search):
    PARAMS: ClassVar[type[StrategyParams]] = Beam

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        params = request.strategy
        assert isinstance(params, Beam | BeamSample)
        self._params = params
        self._ending_ids = stopping.ending_ids
        self._num_candidates = max(2, 1 + len(self._ending_ids)) * params.num_beams  # M
        super().__init__(request, stopping)
        self._penalty = LengthPenalty(params.length_penalty, params.length_penalty_type)
        self._prune = params.prune if isinstance(params, Beam) else None
        beta = params.coverage_penalty if isinstance(params, Beam) else 0.0
        self._coverage = Coverage(beta, len(request.source_ids or request.prompt_ids)) if beta else None
        self._beams = [self._answers.root]
        self._finished: list[Hypothesis] = []

    def _wanted(self) -> Want:
        is_wide = self._num_candidates > MOST_LISTED
        scores = Scores.PROCESSED if self._request.logits.warps else Scores.BEAM
        want = self._report.want(top_k=0 if is_wide else self._num_candidates, scores=scores)
        has_coverage = isinstance(self._params, Beam) and self._params.coverage_penalty > 0
        return dataclasses.replace(want, full=is_wide, attention=has_coverage)

    def _advance(self, rows: Sequence[RowView]) -> Move:
        readings = [r.last for r in rows]
        ended, going_on = self._continued(readings)
        if self._coverage is not None:
            self._coverage.extend([(path, readings[beam]) for beam, path in (*ended, *going_on)])
        before = self._returnable()
        self._finish([path for _, path in ended])
        running = [c for c in going_on if not self._is_pruned(c[1])]
        self._commit([path for _, path in running], before)
        trace = self._event("beams", described([*running, *ended], len(rows)))
        if not running or self._is_over(running[0][1]):
            return Move(emit=self._answers.end(self._finished), trace=trace)
        feeds = tuple(Feed(rows[beam].row, path.token_ids, want=self._want) for beam, path in running)
        return Move(feeds, emit=self._answers.settle(), trace=trace)

    def _continued(self, readings: Sequence[Reading]) -> tuple[list[Extension], list[Extension]]:
        """Of the M best those that end among the first K, and the K best that go on.

        Among equals the earlier beam comes first, then the lower id.
        """
        num_beams = self._params.num_beams
        ended: list[Extension] = []
        going_on: list[Extension] = []
        ranked = merge(*(self._continuations(beam, reading) for beam, reading in enumerate(readings)))
        for rank, (cost, beam, _, token) in enumerate(islice(ranked, self._num_candidates)):
            if rank < num_beams or not self._surely_ends(token.id):
                path = self._path(self._beams[beam], token, -cost)
                if path.finish is None:
                    going_on.append((beam, path))
                elif rank < num_beams:
                    ended.append((beam, path))
            if rank >= num_beams - 1 and len(going_on) == num_beams:
                break
        return ended, going_on

    def _continuations(self, beam: int, reading: Reading) -> Iterator[Continuation]:
        """Best first."""
        total = self._beams[beam].score
        if reading.full is None:
            for at, (_, score) in enumerate(reading.top):
                if score > EXCLUDED:
                    yield -(total + score), beam, at, self._report.listed(reading, at)
            return
        scores = reading.full.numpy()
        for at, token_id in enumerate(descending(scores, 2 * self._params.num_beams)):
            score = float(scores[token_id])
            yield -(total + score), beam, at, self._report.full(reading, token_id, score)

    def _surely_ends(self, token_id: int) -> bool:
        """Whether a path ends with this token, whatever its text."""
        return token_id in self._ending_ids or self._beams[0].length + 1 >= self._stopping.max_tokens

    def _finish(self, paths: Sequence[Path]) -> None:
        joined = [*self._finished, *(Hypothesis(path, self._score(path)) for path in paths)]
        self._finished = sorted(joined, key=lambda h: -h.score)[: self._params.num_beams]

    def _score(self, path: Path) -> float:
        score = self._penalty.score(path.score, path.length)
        return score if self._coverage is None else score + self._coverage.penalty(path)

    def _is_pruned(self, path: Path) -> bool:
        """Whether it is too far behind the best finished one. Never, until there are n finished ones to return."""
        if self._prune is None or len(self._finished) < self._n:
            return False
        return self._finished[0].score - self._penalty.score(path.score, path.length) > self._prune

    def _returnable(self) -> list[Path]:
        """Finished paths that may still be returned: better ones can only push them further down."""
        return [h.path for h in self._finished[: self._n]]

    def _commit(self, running: list[Path], before: Sequence[Path]) -> None:
        """Tell the answers which paths there are now; `before`: those that were returnable."""
        now = self._returnable()
        for path in (*running, *(p for p in now if p not in before)):
            self._answers.keep(path)
        for path in (*self._beams, *(p for p in before if p not in now)):
            self._answers.drop(path)
        self._beams = running

    def _is_over(self, best: Path) -> bool:
        if len(self._finished) < self._params.num_beams:
            return False
        if self._params.early_stopping is True:
            return True
        longest = self._stopping.max_tokens if self._params.early_stopping == "never" else best.length
        return self._penalty.bound(best.score, best.length, longest) <= self._finished[-1].score

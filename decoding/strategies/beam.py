"""Beam search with the finish semantics of Hugging Face's `_beam_search` (transformers 4.55 and 5), token for token.

    rank all y . v by s(y) + log p(v | y); take the M = max(2, 1 + number of ending ids) * K best
    those that end: if among the first K of the M, they join the finished ones, by s / lp(|Y|) + cp; keep K of these
    the K best that do not end are the next beams
    over: K finished and no beam can beat the worst of them, or early_stopping and K finished, or all M end

log p are the processed scores, not normalised again, as there; where the request has a temperature or filters, it is
log_softmax of what its whole pipeline leaves of the logits, and still nothing is drawn. A candidate excluded by a
processor is never taken (there it may fill a beam with -inf), so K beams may be fewer. lp and cp: Wu et al. 2016
(arXiv 1609.08144); a beam's cp is not bounded yet by what it may still attend to, so pruning and the bound on what it
can reach leave it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import islice

from decoding.logits.step import EXCLUDED
from decoding.params import Beam, BeamSample, Request
from decoding.ranking import LengthPenalty
from decoding.seam import Feed, Move, Reading, RowView, Scores, Tools, Want
from decoding.stopping import Stopping
from decoding.strategies.coverage import Coverage
from decoding.strategies.hypotheses import Hypothesis, Path
from decoding.strategies.search import Extension, Search, described, reported, search_want


class BeamStrategy(Search):
    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        params = request.strategy
        assert isinstance(params, Beam | BeamSample)
        self._params = params
        self._num_candidates = max(2, 1 + len(stopping.ending_ids)) * params.num_beams  # M
        super().__init__(request, stopping, params.n, self._wanted(request))
        self._penalty = LengthPenalty(params.length_penalty, params.length_penalty_type)
        self._prune = params.prune if isinstance(params, Beam) else None
        beta = params.coverage_penalty if isinstance(params, Beam) else 0.0
        self._coverage = Coverage(beta, len(request.source_ids or request.prompt_ids)) if beta else None
        self._beams = [self._answers.root]
        self._finished: list[Hypothesis] = []

    def _wanted(self, request: Request) -> Want:
        scores = Scores.PROCESSED if request.logits.warps else Scores.BEAM
        want = search_want(request, self._num_candidates, scores)
        has_coverage = isinstance(request.strategy, Beam) and request.strategy.coverage_penalty > 0
        return dataclasses.replace(want, attention=has_coverage)

    def _advance(self, rows: Sequence[RowView]) -> Move:
        num_beams, readings = self._params.num_beams, [r.last for r in rows]
        candidates = self._candidates(readings)
        if self._coverage is not None:
            self._coverage.extend([(path, readings[beam]) for beam, path in candidates])
        ended = [c for c in candidates[:num_beams] if c[1].finish is not None]
        before = self._returnable()
        self._finish([path for _, path in ended])
        going_on = sorted((c for c in candidates if c[1].finish is None), key=lambda c: -c[1].score)
        running = [c for c in going_on[:num_beams] if not self._is_pruned(c[1])]
        self._commit([path for _, path in running], before)
        trace = self._event("beams", described([*running, *ended], len(rows)))
        if not running or self._is_over(running[0][1]):
            return Move(emit=self._answers.end(self._finished), trace=trace)
        feeds = tuple(Feed(rows[beam].row, path.token_ids, want=self._want) for beam, path in running)
        return Move(feeds, emit=self._answers.settle(), trace=trace)

    def _candidates(self, readings: Sequence[Reading]) -> list[Extension]:
        """The M best; ties go to the earlier beam and then to the lower id, as flat indices would."""
        ranked = merge(*(self._continuations(beam, reading) for beam, reading in enumerate(readings)))
        best = list(islice(ranked, self._num_candidates))
        return [(beam, self._extended(beam, readings[beam], at, -cost)) for cost, beam, at in best]

    def _continuations(self, beam: int, reading: Reading) -> Iterator[tuple[float, int, int]]:
        """(-score, beam, rank in the reading), best first."""
        score = self._beams[beam].score
        return ((-(score + s), beam, at) for at, (_, s) in enumerate(reading.top) if s > EXCLUDED)

    def _extended(self, beam: int, reading: Reading, at: int, total: float) -> Path:
        token_id, score = reading.top[at]
        raw = reading.top_logprobs[at] if reading.top_logprobs else 0.0
        return self._path(self._beams[beam], reported(self._request, reading, token_id, score, raw), total)

    def _finish(self, paths: Sequence[Path]) -> None:
        joined = [*self._finished, *(Hypothesis(path, self._score(path)) for path in paths)]
        self._finished = sorted(joined, key=lambda h: -h.score)[: self._params.num_beams]

    def _score(self, path: Path) -> float:
        score = self._penalty.score(path.score, path.length)
        return score if self._coverage is None else score + self._coverage.penalty(path)

    def _is_pruned(self, path: Path) -> bool:
        """Only once all n choices have something to return."""
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

"""Diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424) with the semantics of transformers 4.55's scorer.

    for each of the G groups in turn, K' = K / G beams each:
        log p(v | y) -= diversity_penalty * how many beams of the groups before took v in this step
        rank the group's y . v by s(y) + log p(v | y), after the other processors; walk down the best ones:
        an ending one is finished, by s / |Y| ** alpha, if among the first K'; the others are the next beams, K' of them
        the group is over once it keeps K' finished ones that no beam can beat (early_stopping: once it keeps K')
    at the length limit the open beams count as finished; the n best of all groups are returned

A group that is over still counts in the penalty: as K' beams that took the pad token (the first EOS), as there.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import chain, islice
from typing import ClassVar

from decoding.contract.params import GroupBeam, Request, StrategyParams
from decoding.seam import Feed, FinishReason, Move, RowView, Scores, Tools, TraceEvent, Want
from decoding.stopping import Stopping
from decoding.strategies.parts.hypotheses import Hypothesis, Path
from decoding.strategies.parts.ranking import LengthPenalty
from decoding.strategies.parts.search import MOST_LISTED, Extension, Search, descending, described, is_plain

Ranked = tuple[int, float, float]
"""A token's id, its score after the penalty and the processors, its raw log-prob."""


@dataclass(slots=True)
class _Group:
    """beams: the open paths; none once the group is over.

    finished: the K' best, oldest first.
    """

    beams: list[Path]
    finished: list[Hypothesis] = field(default_factory=list)

    def add(self, hypothesis: Hypothesis, size: int) -> None:
        """One that is no better than the worst of K' does not take its place."""
        if len(self.finished) == size:
            worst = min(self.finished, key=lambda h: h.score)
            if hypothesis.score <= worst.score:
                return
            self.finished.remove(worst)
        self.finished.append(hypothesis)


class GroupBeamStrategy(Search):
    PARAMS: ClassVar[type[StrategyParams]] = GroupBeam

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        params = request.strategy
        assert isinstance(params, GroupBeam)
        self._params = params
        self._tools = tools
        self._size = params.num_beams // params.num_beam_groups  # K'
        self._ending_ids = stopping.ending_ids
        self._width = max(2, 1 + len(self._ending_ids)) * self._size
        self._is_plain = is_plain(request) and self._width <= MOST_LISTED
        super().__init__(request, stopping)
        self._penalty = LengthPenalty(params.length_penalty)
        self._groups = [_Group([self._answers.root]) for _ in range(params.num_beam_groups)]

    def _wanted(self) -> Want:
        """Where only the diversity penalty changes scores, the best are enough: it lowers one for each other beam."""
        if not self._is_plain:
            return dataclasses.replace(self._report.want(scores=Scores.RAW), full=True)
        num_best = max(self._width, self._report.num_top)
        return self._report.want(top_k=num_best + self._params.num_beams - self._size, scores=Scores.RAW)

    def _advance(self, rows: Sequence[RowView]) -> Move:
        taken: Counter[int | None] = Counter()  # token id -> how many beams took it in this step
        before = self._alive()
        feeds: list[Feed] = []
        trace: list[TraceEvent] = []
        for number, group in enumerate(self._groups):
            own = rows if self._num_steps == 1 else rows[: len(group.beams)]
            rows = rows if self._num_steps == 1 else rows[len(group.beams) :]
            if not group.beams:
                taken[self._stopping.pad_id] += self._size
                continue
            opened, ended = self._advance_group(group, self._candidates(group, own, taken))
            taken.update(path.token_ids[0] for _, path in opened)
            feeds += [Feed(own[at].row, path.token_ids, want=self._want) for at, path in opened if group.beams]
            trace += self._event("group", {"group": number} | described([*opened, *ended], len(own)))
        if self._num_steps == self._stopping.max_tokens or not feeds:
            self._close()
            return Move(emit=self._answers.end(self._ranked()), trace=tuple(trace))
        self._commit(before)
        return Move(tuple(feeds), emit=self._answers.settle(), trace=tuple(trace))

    def _candidates(self, group: _Group, rows: Sequence[RowView], taken: Counter[int | None]) -> Iterator[Extension]:
        """The best continuations of the group's beams, best first; beyond the first K' those alone that may go on."""
        ranked = [self._ranked_tokens(row, taken) for row in rows]
        tops = [tuple((i, s) for i, s, _ in first) for first, _ in ranked]
        totals = merge(*(self._totals(at, group.beams[at], chain(*tokens)) for at, tokens in enumerate(ranked)))
        for rank, (cost, at, _, (token_id, score, raw)) in enumerate(islice(totals, self._width)):
            if rank < self._size or token_id not in self._ending_ids:
                token = self._report.token(rows[at].last, token_id, score, raw, ranked=tops[at])
                yield at, self._path(group.beams[at], token, -cost)

    def _totals(self, at: int, beam: Path, tokens: Iterable[Ranked]) -> Iterator[tuple[float, int, int, Ranked]]:
        """What ranks a beam's continuations among those of the others."""
        return ((-(beam.score + token[1]), at, rank, token) for rank, token in enumerate(tokens))

    def _ranked_tokens(self, row: RowView, taken: Counter[int | None]) -> tuple[list[Ranked], Iterator[Ranked]]:
        """A row's tokens after the penalty and the processors, best first: as many as are reported, and the others."""
        penalty, reading = self._params.diversity_penalty, row.last
        num_reported = self._report.num_top
        if self._is_plain:
            plain = [(i, s - penalty * taken[i], s) for i, s in reading.top]
            plain.sort(key=lambda t: (-t[1], t[0]))
            return plain[:num_reported], iter(plain[num_reported:])
        assert reading.full is not None
        scores = reading.full.clone()
        for token_id, count in taken.items():
            if token_id is not None:
                scores[token_id] -= penalty * count
        processed = self._tools.process(row.row, (), scores, warps=False).numpy()
        raw = reading.full.numpy()
        best = descending(processed, max(2 * self._size, num_reported))
        tokens = ((i, float(processed[i]), float(raw[i])) for i in best)
        return list(islice(tokens, num_reported)), tokens

    def _advance_group(self, group: _Group, candidates: Iterable[Extension]) -> tuple[list[Extension], list[Extension]]:
        """Walk down the candidates; returns those to continue, without which the group is over, and the finished."""
        opened: list[Extension] = []
        ended: list[Extension] = []
        best: Path | None = None
        for rank, extension in enumerate(candidates):
            path = extension[1]
            best = best or path
            if len(opened) == self._size:
                break
            if not is_ended(path):
                opened.append(extension)
            elif rank < self._size:
                ended.append(extension)
                group.add(self._hypothesis(path), self._size)
        is_over = not opened or best is None or self._is_over(group, best)
        group.beams = [] if is_over else [path for _, path in opened]
        return opened, ended

    def _is_over(self, group: _Group, best: Path) -> bool:
        if len(group.finished) < self._size:
            return False
        if self._params.early_stopping is True:
            return True
        longest = self._stopping.max_tokens if self._params.early_stopping == "never" else best.length
        return self._penalty.bound(best.score, best.length, longest) <= min(h.score for h in group.finished)

    def _hypothesis(self, path: Path) -> Hypothesis:
        return Hypothesis(path, self._penalty.score(path.score, path.length))

    def _close(self) -> None:
        """The open beams of every group reached the length limit."""
        for group in self._groups:
            for path in group.beams:
                group.add(self._hypothesis(path), self._size)

    def _ranked(self) -> list[Hypothesis]:
        """All groups' finished ones, the later first among equals."""
        pooled = [h for group in self._groups for h in group.finished]
        return sorted(pooled, key=lambda h: h.score)[::-1]

    def _alive(self) -> dict[Path, None]:
        """Paths that may still be returned or continued: better ones can only push a finished one further down."""
        open_ones = [path for group in self._groups for path in group.beams]
        return dict.fromkeys([*open_ones, *(h.path for h in self._ranked()[: self._n])])

    def _commit(self, before: dict[Path, None]) -> None:
        now = self._alive()
        for path in now.keys() - before.keys():
            self._answers.keep(path)
        for path in before.keys() - now.keys():
            self._answers.drop(path)


def is_ended(path: Path) -> bool:
    """Whether its text is over; a path at the length limit stays open until the search ends."""
    return path.finish is not None and path.finish.reason is not FinishReason.LENGTH

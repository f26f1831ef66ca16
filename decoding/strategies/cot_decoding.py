"""CoT-decoding (Wang & Zhou 2024, arXiv 2402.10200): chain-of-thought paths without a chain-of-thought prompt.

    branch into the k likeliest tokens (at output position branch_at), decode each branch greedily
    Delta_k = mean over the answer's tokens t of p(x1_t) - p(x2_t), the two likeliest tokens at t
    return the surest branch: of all (largest Delta), or of the answer whose branches' Deltas sum to most (aggregate)

p in Delta is the model's own (raw). Also at the branching position it is that of the two likeliest tokens, whichever
one the branch took. The k tokens are the likeliest that the logits pipeline leaves. A branch without an answer comes
last; if none has one, Delta is over all tokens. Branches draw as the request says; the paper's are greedy (temperature
0).

With a suffix, it is fed behind the text, without the EOS or stop id that ended that. The answer is then what the model
says behind the suffix, up to a line break. Its tokens are the last ones in the text that say the same; if there are
none, those behind the suffix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import ClassVar

from decoding.contract.answers import (
    LAST_NUMBER,
    Answer,
    compile_answer,
    cut_at,
    find_answer,
    first_line,
    first_line_of,
    last_place,
)
from decoding.contract.params import CotDecoding, Request, StrategyParams
from decoding.seam import (
    Draw,
    Emit,
    Feed,
    Figure,
    Finish,
    FinishReason,
    Json,
    Move,
    Observation,
    Reading,
    RowView,
    Tools,
    TraceEvent,
    Want,
)
from decoding.stopping import START, Progress, Stopping
from decoding.strategies.parts.choice import stop_sequence, text_ids
from decoding.strategies.parts.prompt import open_prompt, prompt_scores
from decoding.strategies.parts.ranking import Vote, by_agreement, surest
from decoding.strategies.parts.report import Report, Token


@dataclass(slots=True)
class _Branch:
    """A path, and what it is worth.

    gaps: p(x1) - p(x2) where each token was taken.
    said, said_gaps, said_progress: the same of what comes behind the suffix.
    answer: known at the end, as what follows.
    delta: None where other branches have an answer and this one has none.
    score: what it is ranked by.
    """

    index: int = 0
    tokens: list[Token] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    progress: Progress = START
    finish: Finish | None = None
    said: list[int] = field(default_factory=list)
    said_gaps: list[float] = field(default_factory=list)
    said_progress: Progress = START
    answer: Answer | None = None
    delta: float | None = None
    score: float | None = None

    def twin(self, index: int) -> _Branch:
        return _Branch(index, [*self.tokens], [*self.gaps], self.progress)

    @property
    def figures(self) -> tuple[tuple[str, Figure], ...]:
        confidence = () if self.delta is None else (("cot_confidence", self.delta),)
        return confidence if self.answer is None else (*confidence, ("answer", self.answer.text))


class CotDecodingStrategy:
    PARAMS: ClassVar[type[StrategyParams]] = CotDecoding

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, CotDecoding)
        self._params = request.strategy
        self._request = request
        self._report = Report(request)
        self._stopping = stopping
        self._tools = tools
        regex = self._params.answer_regex
        self._pattern = compile_answer(LAST_NUMBER if regex is None else regex)
        self._branches = [_Branch()]
        self._unfinished = self._branches
        self._num_steps = 0
        self._trace: list[TraceEvent] = []

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return Move((open_prompt(self._request, self._want(self._branches[0])),))

    def step(self, seen: Observation) -> Move:
        prompt = None if self._num_steps else prompt_scores(self._request, seen.rows[0].readings)
        self._num_steps += 1
        grown = [pair for b, row in zip(self._unfinished, seen.rows, strict=True) for pair in self._grown(b, row)]
        self._unfinished = [branch for branch, feed in grown if feed is not None]
        feeds = tuple(feed for _, feed in grown if feed is not None)
        emits = () if feeds else self._chosen()
        trace, self._trace = tuple(self._trace), []
        return Move(feeds, emit=emits, prompt=prompt, trace=trace)

    # the branches grow

    def _want(self, branch: _Branch) -> Want:
        is_crossing = len(branch.tokens) == self._params.branch_at
        return self._report.want(Draw(branch.index), top_k=self._params.k if is_crossing else 0, raw_top=2)

    def _grown(self, branch: _Branch, row: RowView) -> list[tuple[_Branch, Feed | None]]:
        """What becomes of a branch: itself one token on, or k of it at the crossing; no feed where it is over."""
        if branch.finish is not None:
            return [(branch, self._say(branch, row))]
        if len(branch.tokens) != self._params.branch_at:
            return [(branch, self._take(branch, row, self._report.drawn(row.last)))]
        firsts = self._report.candidates(row.last, self._params.k)
        self._note("branching", candidates=[{"token": t.id, "probability": math.exp(score)} for t, score in firsts])
        self._branches = [branch.twin(i) for i in range(len(firsts))]
        return [(b, self._take(b, row, token)) for b, (token, _) in zip(self._branches, firsts, strict=True)]

    def _take(self, branch: _Branch, row: RowView, token: Token) -> Feed | None:
        """One more token of the text; behind its end the suffix, if there is one."""
        branch.tokens.append(token)
        branch.gaps.append(_gap(row.last))
        branch.progress, branch.finish = self._stopping.push(branch.progress, token.id)
        if branch.finish is None:
            return Feed(row.row, (token.id,), want=self._want(branch))
        suffix = self._params.suffix_ids
        unfed = text_ids([token], branch.finish)
        return Feed(row.row, unfed + suffix, want=_say_want(branch), num_injected=len(suffix)) if suffix else None

    def _say(self, branch: _Branch, row: RowView) -> Feed | None:
        """One more token after the suffix, up to an end of text, a line break or max_answer tokens."""
        token = row.last.tokens[0]
        branch.said_progress, finish = self._stopping.push(branch.said_progress, token)
        if finish is not None and finish.reason is FinishReason.STOP:
            return None
        branch.said.append(token)
        branch.said_gaps.append(_gap(row.last))
        is_over = len(branch.said) == self._params.max_answer or b"\n" in self._tools.text_bytes((token,))
        return None if is_over else Feed(row.row, (token,), want=_say_want(branch))

    # all are over

    def _chosen(self) -> tuple[Emit, ...]:
        """The n best as choices; where there are fewer branches, the best is repeated."""
        ranked = self._ranked()
        for place, b in enumerate(ranked):
            figures = {**dict(b.figures), "score": b.score}
            self._note("branch", place=place, branch=b.index, tokens=[t.id for t in b.tokens], **figures)
        n = self._params.n
        return tuple(self._emit(i, branch) for i, branch in enumerate([*ranked, *ranked[:1] * n][:n]))

    def _emit(self, choice: int, branch: _Branch) -> Emit:
        assert branch.finish is not None
        finish = Finish(branch.finish.reason, branch.finish.stop_reason, branch.score, branch.figures)
        return self._report.emit(choice, branch.tokens, finish)

    def _ranked(self) -> list[_Branch]:
        for branch in self._branches:
            branch.answer = self._answer(branch)
        is_over_all = self._params.span == "all" or not any(b.answer for b in self._branches)
        for branch in self._branches:
            branch.delta = fmean(branch.gaps) if is_over_all else self._answer_delta(branch)
        votes = [
            Vote(b.index, b.answer.text if b.answer else None, b.delta) for b in self._branches if b.delta is not None
        ]
        ranked = []
        for vote, score in by_agreement(votes) if self._params.aggregate else surest(votes):
            self._branches[vote.index].score = score
            ranked.append(self._branches[vote.index])
        return ranked + [b for b in self._branches if b.delta is None]

    def _answer_delta(self, branch: _Branch) -> float | None:
        answer, gaps = branch.answer, branch.gaps
        if answer is None:
            return None
        if self._params.suffix_ids:
            place = last_place(answer.said, self._text_pieces(branch))
            answer, gaps = (answer, branch.said_gaps) if place is None else (place, branch.gaps)
        return fmean(gaps[answer.start : answer.stop])

    def _answer(self, branch: _Branch) -> Answer | None:
        """Where the branch says its answer: in its text, or in what follows the suffix."""
        if not self._params.suffix_ids:
            return find_answer(self._pattern, self._text_pieces(branch))
        line = first_line_of(self._pieces(branch.said))
        found = find_answer(self._pattern, line)
        return first_line(line) if found is None and self._params.answer_regex is None else found

    def _text_pieces(self, branch: _Branch) -> list[bytes]:
        pieces = self._pieces(text_ids(branch.tokens, branch.finish))
        stop = stop_sequence(self._request, branch.finish)
        return cut_at(pieces, stop) if stop else pieces

    def _pieces(self, token_ids: Sequence[int]) -> list[bytes]:
        return [self._tools.text_bytes((t,)) for t in token_ids]

    def _note(self, kind: str, **values: Json) -> None:
        if self._request.trace:
            self._trace.append(TraceEvent(self._num_steps, kind, values))


def _gap(reading: Reading) -> float:
    """p(x1) - p(x2)."""
    p1, *p2 = (math.exp(logprob) for _, logprob in reading.raw_top[:2])
    return p1 - sum(p2)  # a vocabulary of one has no second


def _say_want(branch: _Branch) -> Want:
    return Want((Draw(branch.index),), raw_top=2)

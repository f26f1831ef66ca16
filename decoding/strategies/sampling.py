"""Greedy decoding and multinomial sampling: n choices from one prompt.

    feed the prompt; draw n first tokens from its last position
    repeat: each unfinished choice feeds its token x_t and draws x_{t+1} ~ softmax(pipeline(z))
    a choice leaves when x_t ends it

Each choice has random numbers of its own, so the n choices are n independent requests that share their prompt's pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decoding.params import Request, Sampling
from decoding.seam import (
    Draw,
    Emit,
    Feed,
    Finish,
    FinishReason,
    Move,
    Observation,
    Open,
    Reading,
    RowId,
    Tools,
    Want,
)
from decoding.stopping import START, Progress, Stopping
from decoding.strategies.prompt import inner_want, open_prompt, prompt_scores, scores_kind


@dataclass(slots=True)
class _Choice:
    """One choice under way: how far it is and its cumulative raw log-prob."""

    index: int
    want: Want
    progress: Progress = START
    score: float = 0.0


class SamplingStrategy:
    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Sampling)
        self._request = request
        self._stopping = stopping
        self._unfinished = [_Choice(i, self._want((Draw(i),))) for i in range(request.strategy.n)]
        self._is_prompt_fed = False

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        if self._stopping.max_tokens > 0:
            want = self._want(tuple(Draw(c.index) for c in self._unfinished))
            return Move(feeds=(open_prompt(self._request, want),))
        inner = inner_want(self._request)
        if inner.is_empty or len(prompt_ids) == 1:
            return self._nothing_to_draw(())
        return Move(feeds=(Feed(Open(), tuple(prompt_ids), inner=inner),))

    def step(self, seen: Observation) -> Move:
        if self._is_prompt_fed:
            drawn = [(c, r.row, r.last, 0) for c, r in zip(self._unfinished, seen.rows, strict=True)]
            return self._advance(drawn)
        self._is_prompt_fed = True
        prompt = seen.rows[0]
        if self._stopping.max_tokens == 0:
            return self._nothing_to_draw(prompt.readings)
        drawn = [(c, prompt.row, prompt.last, i) for i, c in enumerate(self._unfinished)]
        move = self._advance(drawn)
        return Move(move.feeds, emit=move.emit, prompt=prompt_scores(self._request, prompt.readings))

    def _want(self, draws: tuple[Draw, ...]) -> Want:
        num_top = self._request.logprobs.output
        return Want(draws, logprobs=num_top is not None, top_k=num_top or 0, scores=scores_kind(self._request))

    def _advance(self, drawn: Sequence[tuple[_Choice, RowId, Reading, int]]) -> Move:
        """Commit draw number `i` of each reading; feed the choices that go on."""
        feeds, emits, unfinished = [], [], []
        for choice, row, reading, i in drawn:
            token = reading.tokens[i]
            choice.progress, finish = self._stopping.push(choice.progress, token)
            emits.append(self._emit(choice, reading, i, finish))
            if finish is None:
                feeds.append(Feed(row, (token,), want=choice.want))
                unfinished.append(choice)
        self._unfinished = unfinished
        return Move(tuple(feeds), emit=tuple(emits))

    def _emit(self, choice: _Choice, reading: Reading, i: int, finish: Finish | None) -> Emit:
        token = (reading.tokens[i],)
        if not reading.logprobs:
            return Emit(choice.index, token, finish=finish)
        choice.score += reading.logprobs[i]
        if finish is not None:
            finish = Finish(finish.reason, finish.stop_reason, choice.score)
        raw = (reading.logprobs[i],)
        return Emit(choice.index, token, (reading.drawn_scores[i],), (reading.top,), raw, finish)

    def _nothing_to_draw(self, readings: Sequence[Reading]) -> Move:
        """max_tokens = 0: every choice is empty; the prompt may still be scored."""
        over = Finish(FinishReason.LENGTH)
        emits = tuple(Emit(c.index, (), (), (), finish=over) for c in self._unfinished)
        return Move(emit=emits, prompt=prompt_scores(self._request, readings))

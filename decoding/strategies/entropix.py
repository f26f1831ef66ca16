"""entropix (xjdr-alt/entropix): how sure the model is decides how its next token is chosen.

    metrics of z and of the last layer's attention -> quadrant -> sampling parameters (`parts/quadrants.py`)
    certain: the best token
    thinking: the think token, unless it was the last one
    adaptive: of several draws the one with the largest z (the reference adds a confidence, the same for all)
    else: one draw

The metrics are those of the untouched z; the choice is made from what the request's masks and penalties leave of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from decoding.contract.params import Entropix, Request, StrategyParams
from decoding.logits.step import EXCLUDED
from decoding.seam import Draw, Feed, Json, Move, NothingToDraw, Observation, Purpose, Reading, Tools, TraceEvent
from decoding.stopping import Stopping
from decoding.strategies.parts.choice import Choice
from decoding.strategies.parts.prompt import open_prompt, prompt_scores
from decoding.strategies.parts.quadrants import (
    Attention,
    Metrics,
    Quadrant,
    Settings,
    attention_metrics,
    filtered,
    quadrant,
    settings,
)
from decoding.strategies.parts.report import Report, is_possible, whole_logits

BITS = 1.4426950408889634
"""Per nat."""


@dataclass(frozen=True, slots=True)
class _Decision:
    """scores: float32 [vocab], what the token was picked from.

    settings: None where nothing was drawn.
    """

    quadrant: Quadrant
    token: int
    scores: torch.Tensor
    settings: Settings | None = None


class EntropixStrategy:
    PARAMS: ClassVar[type[StrategyParams]] = Entropix

    def __init__(self, request: Request, stopping: Stopping, tools: Tools) -> None:
        assert isinstance(request.strategy, Entropix)
        self._request = request
        self._params = request.strategy
        self._tools = tools
        self._report = Report(request)
        self._choice = Choice(self._report, stopping)
        logits, has_attention = self._report.want_logits(), self._params.uses_attention
        self._want = dataclasses.replace(logits, entropy=True, attention=has_attention)
        self._last_token = request.prompt_ids[-1]
        self._num_steps = 0

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return Move((open_prompt(self._request, self._want),))

    def step(self, seen: Observation) -> Move:
        view = seen.rows[0]
        prompt = prompt_scores(self._request, view.readings) if self._num_steps == 0 else None
        z = self._tools.process(view.row, (), whole_logits(view.last), warps=False)
        if not is_possible(z):
            raise NothingToDraw
        m = self._metrics(view.last)
        decided = self._decide(m, whole_logits(view.last), z, view.last.position)
        self._last_token = decided.token
        self._choice.push(self._report.picked(view.last, decided.token, decided.scores))
        trace = (self._event(m, decided),) if self._request.trace else ()
        self._num_steps += 1
        feeds = () if self._choice.is_over else (Feed(view.row, (decided.token,), want=self._want),)
        return Move(feeds, emit=(self._choice.emit(),), prompt=prompt, trace=trace)

    def _metrics(self, reading: Reading) -> Metrics:
        assert reading.entropy is not None
        assert reading.varentropy is not None
        attention = Attention() if reading.attention is None else attention_metrics(reading.attention)
        return Metrics(reading.entropy * BITS, reading.varentropy * BITS**2, attention)

    def _decide(self, m: Metrics, raw: torch.Tensor, z: torch.Tensor, position: int) -> _Decision:
        """raw: the model's logits; z: what masks and penalties leave of them."""
        where = quadrant(m, self._params)
        think = self._params.think_token_id
        if where is Quadrant.THINKING and think not in (None, self._last_token) and z[think] > EXCLUDED:
            return _Decision(where, think, z)
        sampled = settings(where, m, self._params)
        if sampled is None:
            return _Decision(where, int(z.argmax()), z)
        scores = filtered(z, sampled, is_compat=self._params.compat)
        if where is not Quadrant.ADAPTIVE:
            return _Decision(where, self._tools.draw(scores, Draw(), position), scores, sampled)
        draw, lanes = Draw(purpose=Purpose.ADAPTIVE), range(self._params.num_adaptive_samples)
        tokens = [self._tools.draw(scores, draw, position, lane) for lane in lanes]
        return _Decision(where, max(tokens, key=lambda x: float(raw[x])), scores, sampled)

    def _event(self, m: Metrics, decided: _Decision) -> TraceEvent:
        is_seen = self._params.uses_attention
        values: dict[str, Json] = {
            "quadrant": decided.quadrant.value,
            "token": decided.token,
            "entropy": m.entropy,
            "varentropy": m.varentropy,
            "attention": dataclasses.asdict(m.attention) if is_seen else None,
            "sampled": None if decided.settings is None else dataclasses.asdict(decided.settings),
        }
        return TraceEvent(self._num_steps, "quadrant", values)

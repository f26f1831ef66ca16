"""One choice whose tokens its strategy picks on the host: how far it is, and what is reported of each token.

The engine's own draws need none of this; it serves the strategies that see a position's whole scores and decide
themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from decoding.contract.params import Request
from decoding.seam import Draw, Emit, Finish, Reading, Scores, Tools, Want
from decoding.stopping import START, Stopping
from decoding.topk.scores import log_softmax_topk


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What to report of one token: its log-prob and the best ids in the request's mode, and its raw log-prob."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    raw: float


class Choice:
    def __init__(self, stopping: Stopping, index: int = 0) -> None:
        self.index = index
        self.progress = START
        self.is_over = False
        self._stopping = stopping
        self._score = 0.0

    @property
    def is_last_token_due(self) -> bool:
        """Whether the next token ends the choice, whatever it is."""
        return self.progress.num_tokens + 1 >= self._stopping.max_tokens

    def emit(self, token: int, scores: TokenScores | None) -> Emit:
        """Commit a token; scores where the request asked for log-probs."""
        self.progress, finish = self._stopping.push(self.progress, token)
        self.is_over = finish is not None
        if scores is None:
            return Emit(self.index, (token,), finish=finish)
        self._score += scores.raw
        if finish is not None:
            finish = Finish(finish.reason, finish.stop_reason, self._score)
        return Emit(self.index, (token,), (scores.logprob,), (scores.top,), (scores.raw,), finish)


def whole(request: Request) -> Want:
    """A position's z in full, and what the request wants reported of it."""
    is_raw = request.logprobs.mode == "raw"
    return Want(full=True, raw_top=(request.logprobs.output or 0) if is_raw else 0, scores=Scores.LOGITS)


def whole_logits(reading: Reading) -> torch.Tensor:
    """z of a position read with `whole`: float32 [vocab]."""
    assert reading.full is not None
    return reading.full


def is_possible(scores: torch.Tensor) -> bool:
    """Whether scores [vocab] leave any token to pick."""
    return bool(scores.max().isfinite())


def pick(tools: Tools, scores: torch.Tensor, choice: int, position: int, *, is_greedy: bool) -> int:
    """One id from processed scores [vocab]: the best, or drawn as the engine would."""
    return int(scores.argmax()) if is_greedy else tools.draw(scores, Draw(choice), position)


def token_scores(request: Request, token: int, reading: Reading, scores: torch.Tensor) -> TokenScores | None:
    """None where no log-probs are asked.

    reading: read with `whole`. scores: float32 [vocab], what the token was picked from.
    """
    num_top = request.logprobs.output
    if num_top is None:
        return None
    raw = float(log_softmax_topk(whole_logits(reading).unsqueeze(0)).at(0, token))
    if request.logprobs.mode == "raw":
        return TokenScores(raw, reading.raw_top, raw)
    processed = log_softmax_topk(scores.unsqueeze(0), num_top)
    top = tuple(zip(processed.ids[0].tolist(), processed.best[0].tolist(), strict=True))
    return TokenScores(float(processed.at(0, token)), top, raw)

"""Log-probs: what to read of a position, and what to report of a token.

Raw log-probs are the model's own; processed ones are those of what the request's logits pipeline leaves. A request
names the mode that it wants to see, and this file alone knows which of the two that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from decoding.contract.params import Request
from decoding.logits.step import EXCLUDED
from decoding.seam import Draw, Emit, Finish, NothingToDraw, Reading, Scores, Want
from decoding.topk.scores import log_softmax_topk

Top = tuple[tuple[int, float], ...]


class Token(NamedTuple):
    """An output token; all but its id is left out where the request reports no log-probs.

    logprob: in the request's mode.
    raw_logprob: the model's own.
    top: the best ids in its place with their log-probs, as many as the request reports.
    """

    id: int
    logprob: float = 0.0
    raw_logprob: float = 0.0
    top: Top = ()


def scores_kind(request: Request) -> Scores:
    """The kind of score that the request's logprobs_mode names."""
    return Scores.RAW if request.logprobs.mode == "raw" else Scores.PROCESSED


class Report:
    """What one request reports of its tokens.

    kind: the scores that a position must at least be read in.
    num_top: how many of the best ids are reported beside each token.
    has_score: whether raw log-probs are read, to add up to a choice's score. They are where log-probs are reported;
        a strategy that always tells its score says so.
    """

    def __init__(self, request: Request, *, has_score: bool = False) -> None:
        self.kind = scores_kind(request)
        self.num_top = request.logprobs.output or 0
        self.has_score = has_score or request.logprobs.output is not None
        self._has_logprobs = request.logprobs.output is not None
        self._is_raw = self.kind is Scores.RAW

    def want(self, *draws: Draw, scores: Scores = Scores.PROCESSED, top_k: int = 0, raw_top: int = 0) -> Want:
        """Draw tokens, and read all that any token here reports; top_k (in `scores`) and raw_top for one's own use.

        scores: `kind` costs least; it is enough for a strategy that has no use of its own for them.
        """
        if self._is_raw and scores is not Scores.RAW:
            raw_top = max(raw_top, self.num_top)
        else:
            top_k = max(top_k, self.num_top)
        return Want(draws, logprobs=self.has_score, top_k=top_k, raw_top=raw_top, scores=scores)

    def want_logits(self) -> Want:
        """Read the whole z, for a token that is picked on the host (`picked`)."""
        return Want(full=True, raw_top=self.num_top if self._is_raw else 0, scores=Scores.LOGITS)

    def drawn(self, reading: Reading, draw: int = 0) -> Token:
        """A token that the engine drew."""
        if not reading.tokens:
            raise NothingToDraw
        if not self.has_score:
            return Token(reading.tokens[draw])
        return self.token(reading, reading.tokens[draw], reading.drawn_scores[draw], reading.logprobs[draw])

    def candidates(self, reading: Reading, k: int) -> list[tuple[Token, float]]:
        """The k best of `reading.top`, best first, with their scores there; excluded ones are no candidates."""
        best = enumerate(reading.top[:k])
        return [(self.listed(reading, at), score) for at, (_, score) in best if score > EXCLUDED]

    def listed(self, reading: Reading, at: int) -> Token:
        """The token in that place of `reading.top`."""
        token_id, score = reading.top[at]
        return self.token(reading, token_id, score, reading.top_logprobs[at] if reading.top_logprobs else 0.0)

    def full(self, reading: Reading, token_id: int, score: float) -> Token:
        """Any token, of a reading of all scores, given its own."""
        raw = 0.0 if reading.full_logprobs is None else float(reading.full_logprobs[token_id])
        return self.token(reading, token_id, score, raw)

    def kept(self, reading: Reading, token_id: int) -> Token:
        """Any token, of a reading that kept its scores."""
        if not self.has_score:
            return Token(token_id)
        assert reading.kept is not None
        assert reading.kept_raw is not None
        return self.token(reading, token_id, float(reading.kept[token_id]), float(reading.kept_raw[token_id]))

    def picked(self, reading: Reading, token_id: int, scores: torch.Tensor) -> Token:
        """A token picked from scores [vocab] that were made of the reading's whole z."""
        if not self.has_score:
            return Token(token_id)
        raw = float(log_softmax_topk(whole_logits(reading).unsqueeze(0)).at(0, token_id))
        if self._is_raw:
            return self.token(reading, token_id, raw, raw)
        processed = log_softmax_topk(scores.unsqueeze(0), self.num_top)
        top = tuple(zip(processed.ids[0].tolist(), processed.best[0].tolist(), strict=True))
        return self.token(reading, token_id, float(processed.at(0, token_id)), raw, ranked=top)

    def token(self, reading: Reading, token_id: int, score: float, raw: float, *, ranked: Top | None = None) -> Token:
        """Any token, given its score and raw log-prob.

        ranked: the best ids by the same score, where they are not those of the reading.
        """
        if not self.has_score:
            return Token(token_id)
        if self._is_raw:
            return Token(token_id, raw, raw, (reading.raw_top or reading.top)[: self.num_top])
        return Token(token_id, score, raw, (reading.top if ranked is None else ranked)[: self.num_top])

    def emit(self, choice: int, tokens: Sequence[Token], finish: Finish | None = None) -> Emit:
        """The tokens, with log-probs where the request wants them."""
        if not self._has_logprobs:
            return Emit(choice, tuple([token.id for token in tokens]), finish=finish)
        ids, logprobs, raw, top = zip(*tokens, strict=True) if tokens else ((), (), (), ())
        return Emit(choice, ids, logprobs, top, raw, finish)


def whole_logits(reading: Reading) -> torch.Tensor:
    """z of a position read with `Report.want_logits`: float32 [vocab]."""
    assert reading.full is not None
    return reading.full


def is_possible(scores: torch.Tensor) -> bool:
    """Whether scores [vocab] leave any token to pick."""
    return bool(scores.max().isfinite())

"""A token with all that its reading says of it, for strategies that hold tokens back before they emit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decoding.contract.params import Request
from decoding.contract.params.stopping import StopSequence
from decoding.seam import Draw, Emit, Finish, FinishReason, Reading, Scores, Want


@dataclass(frozen=True, slots=True)
class Token:
    """logprob is in the request's mode, top the best ids beside it, as many as the request reports."""

    id: int
    logprob: float
    raw_logprob: float
    top: tuple[tuple[int, float], ...]


def token_want(request: Request, draw: Draw, *, top_k: int = 0, raw_top: int = 0, entropy: bool = False) -> Want:
    """Draw a token and read all that a Token needs; top_k (after the logits pipeline) and raw_top for one's own use."""
    num_top = request.logprobs.output or 0
    is_raw = request.logprobs.mode == "raw"
    return Want(
        (draw,),
        logprobs=True,
        top_k=top_k if is_raw else max(top_k, num_top),
        raw_top=max(raw_top, num_top) if is_raw else raw_top,
        entropy=entropy,
        scores=Scores.PROCESSED,
    )


def drawn(request: Request, reading: Reading) -> Token:
    """The token that was drawn."""
    return _token(request, reading, reading.tokens[0], reading.drawn_scores[0], reading.logprobs[0])


def candidates(request: Request, reading: Reading, k: int) -> list[tuple[Token, float]]:
    """The k likeliest tokens after the logits pipeline, best first, with their log-probs there; excluded ones are no
    candidates."""
    best = zip(reading.top[:k], reading.top_logprobs[:k], strict=True)
    return [(_token(request, reading, t, score, raw), score) for (t, score), raw in best if score > float("-inf")]


def emit(request: Request, choice: int, tokens: Sequence[Token], finish: Finish | None = None) -> Emit:
    """The tokens, with log-probs where the request wants them."""
    ids, raw = tuple(t.id for t in tokens), tuple(t.raw_logprob for t in tokens)
    if request.logprobs.output is None:
        return Emit(choice, ids, raw_logprobs=raw, finish=finish)
    return Emit(choice, ids, tuple(t.logprob for t in tokens), tuple(t.top for t in tokens), raw, finish)


def _token(request: Request, reading: Reading, token_id: int, score: float, raw: float) -> Token:
    num_top = request.logprobs.output or 0
    if request.logprobs.mode == "raw":
        return Token(token_id, raw, raw, reading.raw_top[:num_top])
    return Token(token_id, score, raw, reading.top[:num_top])


def text_ids(tokens: Sequence[Token], finish: Finish | None) -> tuple[int, ...]:
    """Their ids, without the EOS or stop id that ended them: that one is no text."""
    is_ended_by_id = (
        finish is not None and finish.reason is FinishReason.STOP and not isinstance(finish.stop_reason, StopSequence)
    )
    return tuple(t.id for t in (tokens[:-1] if is_ended_by_id else tokens))


def stop_sequence(request: Request, finish: Finish | None) -> bytes | None:
    """The stop sequence that ended the text."""
    reason = None if finish is None else finish.stop_reason
    return request.stopping.stop[reason.index] if isinstance(reason, StopSequence) else None

"""A job's pieces, in the server's terms -> the typed results that callers get."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from decoding.contract.frames import PromptScores
from polydecode.job import Job
from polydecode.results import (
    Alternative,
    Choice,
    Delta,
    Embedding,
    Generation,
    ScoredToken,
    Scores,
    ToolCall,
    TraceStep,
    Usage,
)
from server.answer.choice import Piece, Top
from server.answer.choice import ScoredToken as Scored
from server.text.tool_parsers.call import CallDelta
from server.text.vocabulary import Vocabulary
from server.wire.answers import TraceStep as WireTraceStep


class Retold:
    """vocabulary: names tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def generation(self, job: Job, *, num_top: int | None) -> Generation:
        """num_top: alternatives beside each of the prompt's tokens; None where those were not asked for."""
        plan, answer = job.plan, job.answer
        scores, ran = answer.prompt_scores[0], answer.final_decoding
        return Generation(
            prompt_token_ids=plan.prompts[0].ids,
            choices=tuple(self._choice(job, i, piece) for i, piece in enumerate(job.choices)),
            strategy=plan.strategy,
            effective=plan.effective,
            usage=_usage(job, ran.computed_tokens or 0),
            trace=_trace(ran.trace or ()),
            prompt_logprobs=None if scores is None or num_top is None else self._prompt(job, scores, num_top),
        )

    def delta(self, job: Job, choice: int, piece: Piece) -> Delta:
        return Delta(
            prompt=job.index,
            choice=choice,
            text=piece.text,
            token_ids=piece.token_ids,
            finish_reason=piece.finish_reason,
            score=piece.score,
            figures=piece.figures,
            logprobs=self._logprobs(job, piece),
            reasoning=piece.reasoning,
            tool_calls=_calls(piece.calls),
            trace=_trace(job.answer.take_trace()),
        )

    def scores(self, job: Job) -> Scores:
        """Of a text that was echoed and not gone on with."""
        return Scores(self._scored(job.choices[0].scored))

    def _choice(self, job: Job, index: int, piece: Piece) -> Choice:
        return Choice(
            index=index,
            text=piece.text,
            token_ids=piece.token_ids,
            finish_reason=piece.finish_reason,
            score=piece.score,
            figures=piece.figures,
            logprobs=self._logprobs(job, piece),
            reasoning=piece.reasoning,
            tool_calls=_calls(piece.calls),
        )

    def _logprobs(self, job: Job, piece: Piece) -> tuple[ScoredToken, ...] | None:
        return None if job.plan.shown.logprobs is None else self._scored(piece.scored)

    def _scored(self, tokens: Iterable[Scored]) -> tuple[ScoredToken, ...]:
        return tuple(self._token(each.token_id, each.logprob, each.top) for each in tokens)

    def _prompt(self, job: Job, scores: PromptScores, num_top: int) -> tuple[ScoredToken, ...]:
        columns = zip(job.plan.prompts[0].ids, scores.logprobs, scores.top, strict=True)
        return tuple(self._token(token_id, logprob, top[:num_top]) for token_id, logprob, top in columns)

    def _token(self, token_id: int, logprob: float | None, top: Top) -> ScoredToken:
        name = self._vocabulary.name
        return ScoredToken(token_id, name(token_id), logprob, tuple(Alternative(i, name(i), lp) for i, lp in top))


def embedding(job: Job) -> Embedding:
    (vector,) = job.vectors
    return Embedding(struct.unpack(f"<{len(vector) // 4}f", vector), len(job.plan.prompts[0].ids))


def _usage(job: Job, computed: int) -> Usage:
    wire = job.answer.usage()
    details, drafts = wire.prompt_tokens_details, wire.completion_tokens_details
    accepted = drafts.accepted_prediction_tokens
    return Usage(
        prompt=wire.prompt_tokens,
        completion=wire.completion_tokens,
        cached=details.cached_tokens,
        computed=computed,
        drafted=accepted + drafts.rejected_prediction_tokens,
        accepted=accepted,
    )


def _trace(steps: Sequence[WireTraceStep]) -> tuple[TraceStep, ...]:
    return tuple(TraceStep(each.step, each.kind, each.values) for each in steps)


def _calls(calls: Iterable[CallDelta]) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(call.id or "", call.name or "", call.arguments) for call in calls)

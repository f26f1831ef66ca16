"""Answers of /v1/responses: one message with one text."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from msgspec import UNSET
from msgspec.structs import replace

from server.answer.answer import Answer
from server.answer.choice import Piece
from server.answer.format import Stamp, choice_decoding
from server.answer.logprobs import chat_logprobs, prompt_logprobs
from server.text.vocabulary import Vocabulary
from server.translate.plan import Plan
from server.wire.answers import ChatLogprob, PromptLogprobs, Usage
from server.wire.response_objects import (
    IncompleteDetails,
    InputTokensDetails,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    Response,
    ResponseUsage,
)
from server.wire.responses import ResponseRequest


class ResponseFormat:
    """OpenAI's response object, as it is when all is said and before."""

    def __init__(self, wire: ResponseRequest, plan: Plan, vocabulary: Vocabulary) -> None:
        self._wire = wire
        self._plan = plan
        self._vocabulary = vocabulary
        self._stamp = Stamp.new("resp", plan.model)
        self.item_id = f"msg-{secrets.token_hex(16)}"

    def whole(self, answer: Answer, choices: Sequence[Piece]) -> Response:
        """The response at its end."""
        (piece,) = choices
        is_cut = piece.finish_reason == "length"
        return replace(
            self.begun(),
            status=self.status(piece),
            output=[self.message(piece)],
            incomplete_details=IncompleteDetails("max_output_tokens") if is_cut else None,
            usage=_usage(answer.usage()),
            decoding=answer.final_decoding,
            prompt_logprobs=self._prompt_logprobs(answer) or UNSET,
        )

    def begun(self) -> Response:
        """The response before there is anything to say."""
        wire, stamp = self._wire, self._stamp
        return Response(
            id=stamp.id,
            created_at=stamp.created,
            model=stamp.model,
            status="in_progress",
            output=[],
            instructions=wire.instructions,
            max_output_tokens=wire.max_output_tokens,
            temperature=1.0 if wire.temperature is None else wire.temperature,
            top_p=1.0 if wire.top_p is None else wire.top_p,
            top_logprobs=wire.top_logprobs or 0,
            truncation=wire.truncation or "disabled",
        )

    def message(self, piece: Piece) -> OutputMessage:
        return OutputMessage(
            self.item_id,
            self.status(piece),
            [self.part(piece)],
            token_ids=piece.token_ids if self._plan.shown.token_ids else UNSET,
            decoding=choice_decoding(piece),
        )

    def part(self, piece: Piece) -> OutputText:
        return OutputText(piece.text, self.logprobs(piece) if self.has_logprobs else None)

    @property
    def has_logprobs(self) -> bool:
        return self._plan.shown.logprobs is not None

    def logprobs(self, piece: Piece) -> list[ChatLogprob]:
        return chat_logprobs(piece.scored, self._vocabulary).content

    @staticmethod
    def status(piece: Piece) -> str:
        return "incomplete" if piece.finish_reason == "length" else "completed"

    def _prompt_logprobs(self, answer: Answer) -> PromptLogprobs | None:
        num_top, scores = self._plan.shown.prompt_logprobs, answer.scores_of(0)
        if num_top is None or scores is None:
            return None
        return prompt_logprobs(self._plan.prompts[0].ids, scores, num_top, self._vocabulary)


def _usage(usage: Usage) -> ResponseUsage:
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return ResponseUsage(
        usage.prompt_tokens,
        InputTokensDetails(prompt.cached_tokens, prompt.pause_tokens),
        usage.completion_tokens,
        OutputTokensDetails(completion.accepted_prediction_tokens, completion.rejected_prediction_tokens),
        usage.total_tokens,
    )

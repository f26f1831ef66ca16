"""Answers of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from server.answer.answer import Answer
from server.answer.choice import Piece
from server.answer.format import Extras, Stamp, choice_decoding
from server.answer.logprobs import chat_logprobs, prompt_logprobs
from server.text.tool_parsers.call import CallDelta
from server.text.vocabulary import Vocabulary
from server.translate.plan import Plan
from server.wire.answers import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    Delta,
    FunctionCall,
    FunctionDelta,
    Message,
    PromptLogprobs,
    ToolCall,
    ToolCallDelta,
)


class ChatFormat:
    """OpenAI's chat.completion and chat.completion.chunk objects. A stream's choice begins with its role."""

    def __init__(self, plan: Plan, vocabulary: Vocabulary) -> None:
        self._plan = plan
        self._vocabulary = vocabulary
        self._stamp = Stamp.new("chatcmpl", plan.model)

    def whole(self, answer: Answer, choices: Sequence[Piece]) -> ChatCompletion:
        return ChatCompletion(
            self._stamp.id,
            self._stamp.created,
            self._stamp.model,
            [self._choice(index, piece) for index, piece in enumerate(choices)],
            usage=answer.usage(),
            decoding=answer.final_decoding,
            prompt_logprobs=self._prompt_logprobs(answer),
        )

    @property
    def has_openings(self) -> bool:
        return True

    def begin(self, answer: Answer, choice: int, extras: Extras) -> ChatChunk:
        form = self._plan.message
        nothing = None if form and form.tools else ""  # there may be calls and never any content
        role = ChatDelta(choice, Delta(role="assistant", content=nothing), None, None)
        return self._chunk([role], extras, self._prompt_logprobs(answer) if choice == 0 else UNSET)

    def delta(self, choice: int, piece: Piece, extras: Extras) -> ChatChunk:
        delta = ChatDelta(
            index=choice,
            delta=_delta(piece),
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish_reason,
            token_ids=piece.token_ids if self._plan.shown.token_ids else UNSET,
            decoding=choice_decoding(piece),
        )
        return self._chunk([delta], extras)

    def end(self, extras: Extras) -> ChatChunk:
        return self._chunk([], extras)

    def _chunk(self, choices: list[ChatDelta], extras: Extras, scores: PromptLogprobs | UnsetType = UNSET) -> ChatChunk:
        stamp = self._stamp
        return ChatChunk(
            stamp.id,
            stamp.created,
            stamp.model,
            choices,
            usage=extras.usage,
            decoding=extras.decoding,
            prompt_logprobs=scores,
        )

    def _choice(self, index: int, piece: Piece) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=_message(piece),
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish_reason,
            token_ids=piece.token_ids if self._plan.shown.token_ids else UNSET,
            decoding=choice_decoding(piece),
        )

    def _logprobs(self, piece: Piece) -> ChatLogprobs | None:
        return None if self._plan.shown.logprobs is None else chat_logprobs(piece.scored, self._vocabulary)

    def _prompt_logprobs(self, answer: Answer) -> PromptLogprobs | UnsetType:
        num_top, scores = self._plan.shown.prompt_logprobs, answer.scores_of(0)
        if num_top is None or scores is None:
            return UNSET
        return prompt_logprobs(self._plan.prompts[0].ids, scores, num_top, self._vocabulary)


def _message(piece: Piece) -> Message:
    calls = [ToolCall(call.id or "", FunctionCall(call.name or "", call.arguments)) for call in piece.calls]
    return Message(
        content=piece.text or (None if calls else ""),
        reasoning_content=piece.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )


def _delta(piece: Piece) -> Delta:
    """A delta that says nothing else says that there is no more text yet."""
    says_more = piece.reasoning or piece.calls or piece.finish_reason
    return Delta(
        content=piece.text if piece.text or not says_more else UNSET,
        reasoning_content=piece.reasoning or UNSET,
        tool_calls=[_call_delta(call) for call in piece.calls] or UNSET,
    )


def _call_delta(call: CallDelta) -> ToolCallDelta:
    if call.id is None:
        return ToolCallDelta(call.index, FunctionDelta(arguments=call.arguments))
    return ToolCallDelta(call.index, FunctionDelta(call.name or UNSET, call.arguments), call.id, "function")

"""Answers of /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from server.answer.answer import Answer
from server.answer.choice import Piece
from server.answer.format import Extras, Stamp, choice_decoding
from server.answer.logprobs import completion_logprobs, prompt_logprobs
from server.text.vocabulary import Vocabulary
from server.translate.plan import Plan
from server.wire.answers import Completion, CompletionChoice, PromptLogprobs


class CompletionFormat:
    """OpenAI's text_completion objects; a stream's chunks have the same shape."""

    def __init__(self, plan: Plan, vocabulary: Vocabulary) -> None:
        self._plan = plan
        self._vocabulary = vocabulary
        self._stamp = Stamp.new("cmpl", plan.model)

    @property
    def has_openings(self) -> bool:
        return self._plan.shown.prompt_logprobs is not None

    def whole(self, answer: Answer, choices: Sequence[Piece]) -> Completion:
        written = [self._choice(i, piece, self._prompt_logprobs(answer, i)) for i, piece in enumerate(choices)]
        return self._object(written, Extras(answer.usage(), answer.final_decoding))

    def begin(self, answer: Answer, choice: int, extras: Extras) -> Completion:
        return self._object([self._choice(choice, Piece(), self._prompt_logprobs(answer, choice))], extras)

    def delta(self, choice: int, piece: Piece, extras: Extras) -> Completion:
        return self._object([self._choice(choice, piece)], extras)

    def end(self, extras: Extras) -> Completion:
        return self._object([], extras)

    def _object(self, choices: list[CompletionChoice], extras: Extras) -> Completion:
        stamp = self._stamp
        return Completion(stamp.id, stamp.created, stamp.model, choices, usage=extras.usage, decoding=extras.decoding)

    def _choice(self, index: int, piece: Piece, scores: PromptLogprobs | UnsetType = UNSET) -> CompletionChoice:
        shown = self._plan.shown
        return CompletionChoice(
            index=index,
            text=piece.text,
            logprobs=None if shown.logprobs is None else completion_logprobs(piece.scored, self._vocabulary),
            finish_reason=piece.finish_reason,
            token_ids=piece.token_ids if shown.token_ids else UNSET,
            prompt_logprobs=scores,
            decoding=choice_decoding(piece),
        )

    def _prompt_logprobs(self, answer: Answer, index: int) -> PromptLogprobs | UnsetType:
        shown, scores = self._plan.shown, answer.scores_of(index)
        if shown.prompt_logprobs is None or scores is None:
            return UNSET
        prompt = self._plan.prompts[index // shown.num_choices]
        return prompt_logprobs(prompt.ids, scores, shown.prompt_logprobs, self._vocabulary)

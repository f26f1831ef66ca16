"""Scored tokens in the two shapes OpenAI has for them, and prompt log-probs in vLLM's."""

from __future__ import annotations

from collections.abc import Sequence

from decoding.contract.frames import PromptScores
from server.answer.choice import ScoredToken, Top
from server.text.vocabulary import Vocabulary
from server.wire.answers import ChatLogprob, ChatLogprobs, CompletionLogprobs, PromptLogprob, PromptLogprobs, TopLogprob

LEAST = -9999.0  # OpenAI's stand-in for a log-prob of minus infinity, which JSON cannot say


def completion_logprobs(tokens: Sequence[ScoredToken], vocabulary: Vocabulary) -> CompletionLogprobs:
    """/v1/completions: four parallel lists. A token is among its own alternatives, as with OpenAI."""
    return CompletionLogprobs(
        tokens=[vocabulary.name(token.token_id) for token in tokens],
        token_logprobs=[None if token.logprob is None else _finite(token.logprob) for token in tokens],
        top_logprobs=[_alternatives(token, vocabulary) for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def chat_logprobs(tokens: Sequence[ScoredToken], vocabulary: Vocabulary) -> ChatLogprobs:
    """/v1/chat/completions: a list of tokens."""
    return ChatLogprobs([_chat_token(token, vocabulary) for token in tokens])


def prompt_logprobs(
    token_ids: Sequence[int], scores: PromptScores, num_top: int, vocabulary: Vocabulary
) -> PromptLogprobs:
    """Per prompt token a map from ids to log-probs, None for the first. A rank is known only among the alternatives."""
    columns = zip(token_ids, scores.logprobs, scores.top, strict=True)
    return [None if lp is None else _ranked(i, lp, top, num_top, vocabulary) for i, lp, top in columns]


def _alternatives(token: ScoredToken, vocabulary: Vocabulary) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    best: dict[str, float] = {}
    for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
        best.setdefault(vocabulary.name(token_id), _finite(logprob))
    return best


def _chat_token(token: ScoredToken, vocabulary: Vocabulary) -> ChatLogprob:
    return ChatLogprob(
        token=vocabulary.name(token.token_id),
        logprob=0.0 if token.logprob is None else _finite(token.logprob),
        bytes=list(vocabulary.bytes_of(token.token_id)),
        top_logprobs=[TopLogprob(vocabulary.name(i), _finite(lp), list(vocabulary.bytes_of(i))) for i, lp in token.top],
    )


def _ranked(token_id: int, logprob: float, top: Top, num_top: int, vocabulary: Vocabulary) -> dict[str, PromptLogprob]:
    ranks = {i: rank for rank, (i, _) in enumerate(top, start=1)}
    entries = {str(i): PromptLogprob(_finite(lp), ranks[i], vocabulary.name(i)) for i, lp in top[:num_top]}
    entries.setdefault(str(token_id), PromptLogprob(_finite(logprob), ranks.get(token_id), vocabulary.name(token_id)))
    return entries


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)

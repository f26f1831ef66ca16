"""The prompt field of /v1/completions, in all its forms -> token ids, checked against the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from server.errors import ApiError, too_long
from server.plan import Prompt
from server.protocol import PROMPT, CompletionRequest
from server.served import Served

PromptField = str | list[str] | list[int] | list[list[int]]


def num_prompts(prompt: PromptField) -> int:
    return len(prompt) if isinstance(prompt, list) and not _is_ids(prompt) else 1


async def completion_prompts(wire: CompletionRequest, served: Served) -> tuple[Prompt, ...]:
    """Raises ApiError 400 on an empty prompt, an id outside the vocabulary or a text that can never fit."""
    prompt = wire.prompt
    texts = [prompt] if isinstance(prompt, str) else prompt
    if _are_texts(texts):
        prompts = await _encoded(texts, bool(wire.echo), served)
    else:
        id_lists = [texts] if _is_ids(texts) else texts
        prompts = tuple(_checked(ids, bool(wire.echo), served) for ids in id_lists)  # type: ignore[arg-type]
    if not prompts or not all(each.ids for each in prompts):
        raise ApiError(400, f"prompt must be {PROMPT}", param="prompt")
    return prompts


async def _encoded(texts: Sequence[str], echo: bool, served: Served) -> tuple[Prompt, ...]:
    if served.tokenizer.fewest_tokens(max(texts, key=len)) > served.max_prompt_len:
        raise too_long(served.max_prompt_len, "the prompt alone is longer", "prompt")
    encoded = await served.tokenizer.encode_all(texts)
    return tuple(
        Prompt(each.ids, text, each.starts) if echo else Prompt(each.ids)
        for each, text in zip(encoded, texts, strict=True)
    )


def _checked(ids: Sequence[int], echo: bool, served: Served) -> Prompt:
    if ids and not 0 <= min(ids) <= max(ids) < served.vocab_size:
        raise ApiError(400, f"prompt must hold token ids below {served.vocab_size}", param="prompt")
    if not echo:
        return Prompt(tuple(ids))
    detokenizer = served.tokenizer.detokenizer(at_start=True)
    starts, texts = [], []
    for token_id in ids:
        starts.append(detokenizer.num_chars)
        texts.append(detokenizer.push(token_id))
    return Prompt(tuple(ids), "".join(texts), tuple(starts))


def _is_ids(prompt: object) -> TypeGuard[list[int]]:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)


def _are_texts(prompt: object) -> TypeGuard[list[str]]:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str)

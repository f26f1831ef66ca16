"""Prompts of completions and inputs of embeddings, in all their forms -> token ids, checked against the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from server.errors import ApiError, too_long
from server.served import Served
from server.translate.logits import check_ids
from server.translate.plan import Prompt
from server.wire.requests import PROMPT, CompletionRequest, EmbeddingRequest

PromptField = str | list[str] | list[int] | list[list[int]]
INLINE_IDS = 4096  # some milliseconds of turning them into text


def refuse_longer(text: str, field: str, served: Served) -> None:
    """Raises ApiError 400 for a text that can never fit, before the work is done."""
    if served.tokenizer.fewest_tokens(text) > served.max_prompt_len:
        are = "are" if field == "messages" else "is"
        raise too_long(served.max_prompt_len, f"the {field} alone {are} longer", field)


def num_prompts(prompt: PromptField) -> int:
    return len(prompt) if isinstance(prompt, list) and not _is_ids(prompt) else 1


async def completion_prompts(wire: CompletionRequest, served: Served) -> tuple[Prompt, ...]:
    """Raises ApiError 400 on an empty prompt, an id outside the vocabulary or a text that can never fit."""
    return await _prompts(wire.prompt, "prompt", bool(wire.echo), served)


async def embedding_prompts(wire: EmbeddingRequest, served: Served) -> tuple[Prompt, ...]:
    """Raises ApiError 400 as above, and on an input that is longer than the context."""
    prompts = await _prompts(wire.input, "input", False, served)
    longest = max(len(prompt.ids) for prompt in prompts)
    if longest > served.max_model_len:
        raise too_long(served.max_model_len, f"your request resulted in {longest} tokens", "input")
    return prompts


async def _prompts(prompt: PromptField, field: str, echo: bool, served: Served) -> tuple[Prompt, ...]:
    texts = [prompt] if isinstance(prompt, str) else prompt
    if _are_texts(texts):
        prompts = await _encoded(texts, field, echo, served)
    else:
        id_lists = [texts] if _is_ids(texts) else texts
        prompts = tuple([await _told(ids, field, echo, served) for ids in id_lists])  # type: ignore[arg-type]
    if not prompts or not all(each.ids for each in prompts):
        raise ApiError(400, f"{field} must be {PROMPT}", param=field)
    return prompts


async def _encoded(texts: Sequence[str], field: str, echo: bool, served: Served) -> tuple[Prompt, ...]:
    refuse_longer(max(texts, key=len), field, served)
    encoded = await served.tokenizer.encode_all(texts, with_starts=echo)
    return tuple(
        Prompt(each.ids, text, each.starts) if echo else Prompt(each.ids)
        for each, text in zip(encoded, texts, strict=True)
    )


async def _told(ids: Sequence[int], field: str, echo: bool, served: Served) -> Prompt:
    """Of token ids; with their text, if it is to be echoed."""
    check_ids(field, ids, served)
    if not echo:
        return Prompt(tuple(ids))
    if len(ids) > served.max_prompt_len:
        raise too_long(served.max_prompt_len, f"the {field} alone has {len(ids)}", field)
    if len(ids) <= INLINE_IDS:
        return _echoed(ids, served)
    return await served.writing.run(_echoed, ids, served)


def _echoed(ids: Sequence[int], served: Served) -> Prompt:
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

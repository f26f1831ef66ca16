"""The texts among a request's parameters -> token ids, and the other parameters that depend on the model.

A field that its params class declares to be a text needs nothing here; functions give the other fields of one strategy.
Texts that go on after other text get no special tokens and lose the space that the tokenizer would put before them a
second time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from decoding.contract.params import (
    Assisted,
    Dola,
    Entropix,
    Guided,
    InvalidParam,
    KlGuided,
    LatentThoughts,
    Pmi,
    Sed,
    StrategyParams,
    premature_layers,
)
from decoding.contract.params.declared import FromText, declared, models_named
from server.served import Served
from server.translate.asked import Asked
from server.wire.base import at
from server.wire.requests import Decoding
from server.wire.strategies import JUDGED_TEXT, SED_NO, SED_QUESTION, SED_YES, Context

Derived = Mapping[str, Any]


async def derived(asked: Asked[Decoding], served: Served) -> Derived:
    """The params fields of the strategy that only the model can fill. Raises InvalidParam."""
    for path, name in models_named(asked.params):
        if name not in served.model_names:
            raise InvalidParam(path, f"names no model of this server, which has {', '.join(served.model_names)}")
    values: dict[str, Any] = {}
    for each in declared(asked.strategy.params).values():
        text, given = each.mark(FromText), at(asked.wire, each.path)
        if text is not None and given is not None:
            values[each.name] = await (_context if text.begins else _continuing)(given, each.path, served)
    derive = _DERIVATIONS.get(asked.strategy.params)
    return values if derive is None else {**values, **await derive(asked.wire, served)}


async def bad_word_ids(words: Sequence[str], served: Served) -> tuple[tuple[int, ...], ...]:
    """Each word at the beginning of a text and after a space, as Hugging Face's bad_words_ids are made."""
    if not all(word.strip() for word in words):
        raise InvalidParam("bad_words", "must not hold an empty string")
    bare = [word.lstrip() for word in words]
    encoded = await served.tokenizer.encode_all([*bare, *(f" {word}" for word in bare)], add_special_tokens=False)
    return tuple(dict.fromkeys(each.ids for each in encoded))


async def pause_ids(wire: Decoding, served: Served) -> tuple[int, ...]:
    """The filler behind the prompt."""
    pause = wire.pause_tokens
    if pause is None:
        return ()
    if (pause.token_id is None) == (pause.text is None):
        raise InvalidParam("pause_tokens", "needs either token_id or text, and not both")
    if pause.token_id is not None:
        return _checked((pause.token_id,), "pause_tokens.token_id", served) * pause.count
    return await _continuing(pause.text or "", "pause_tokens.text", served) * pause.count


def latent_thoughts(wire: Decoding, served: Served) -> LatentThoughts | None:
    asked = wire.latent_thoughts
    if asked is None:
        return None
    for name in ("start_id", "end_id"):
        _checked((getattr(asked, name),), f"latent_thoughts.{name}", served)
    return LatentThoughts(asked.count, asked.start_id, asked.end_id)


async def _guided(wire: Decoding, served: Served) -> Derived:
    """Without a negative prompt it is the last token of each prompt (`asked.py`), or an empty source."""
    if wire.negative_prompt is not None or served.encoder is None:
        return {}
    return {"negative_ids": await _no_source("negative_prompt", served)}


async def _kl_guided(wire: Decoding, served: Served) -> Derived:
    return await _sourceless("kl_guided.prompt", wire, served)


async def _pmi(wire: Decoding, served: Served) -> Derived:
    return await _sourceless("pmi.prompt", wire, served)


async def _sourceless(field: str, wire: Decoding, served: Served) -> Derived:
    """The prompt without its source is nothing at all unless the field says what it is."""
    if at(wire, field) is not None:
        return {}
    if served.encoder is not None:
        return {"context_ids": await _no_source(field, served)}
    start = served.tokenizer.bos_id
    ids = served.eos_token_ids[:1] if start is None else (start,)
    if not ids:
        raise InvalidParam(field, "is required: the model has neither BOS nor EOS")
    return {"context_ids": ids}


async def _entropix(wire: Decoding, served: Served) -> Derived:
    token_id, text = at(wire, "entropix.think_token_id"), at(wire, "entropix.think_text")
    if token_id is not None and text is not None:
        raise InvalidParam("entropix.think_text", "and think_token_id exclude each other")
    if text is not None:
        ids = await _continuing(text, "entropix.think_text", served)
        if len(ids) != 1:
            raise InvalidParam("entropix.think_text", f"must be one token and is {len(ids)}")
        return {"think_token_id": ids[0]}
    if token_id is not None:
        _checked((token_id,), "entropix.think_token_id", served)
    return {"think_token_id": token_id}


async def _sed(wire: Decoding, served: Served) -> Derived:
    """The two answers behind the question; the first ids in which they differ are what is compared."""
    before, has_text, question = _divided(at(wire, "sed.question") or SED_QUESTION)
    answers = (at(wire, "sed.yes") or SED_YES, at(wire, "sed.no") or SED_NO)
    yes, no = [await _continuing(question + answer, "sed.question", served) for answer in answers]
    num_same = next((i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b), None)
    if not num_same:
        raise InvalidParam("sed.yes", "and sed.no must begin with different tokens behind sed.question")
    judge = {"eval_ids": yes[:num_same], "yes_id": yes[num_same], "no_id": no[num_same]}
    return judge | {"eval_before": await _context(before, "sed.question", served)} if has_text else judge


def _divided(question: str) -> tuple[str, bool, str]:
    """What stands before the judged text, whether it has a place in the question, and what stands behind it."""
    before, has_text, after = question.rpartition(JUDGED_TEXT)
    if JUDGED_TEXT in before:
        raise InvalidParam("sed.question", f"must hold {JUDGED_TEXT} once at most")
    if has_text and not before:
        raise InvalidParam("sed.question", f"must say something before {JUDGED_TEXT}")
    return before, bool(has_text), after


async def _dola(wire: Decoding, served: Served) -> Derived:
    asked = wire.dola_layers
    if served.num_layers == 0:
        raise InvalidParam("dola_layers", "is not supported: the output matrix does not fit the layers of this model")
    if asked == "low" or asked == "high":  # noqa: PLR1714 - narrows the type
        return {"layers": premature_layers(asked, served.num_layers, is_tied=served.ties_embeddings)}
    layers = tuple(dict.fromkeys(asked or ()))
    if layers and max(layers) >= served.num_layers:
        raise InvalidParam("dola_layers", f"must name layers below {served.num_layers}")
    return {"layers": layers}


async def _assisted(wire: Decoding, served: Served) -> Derived:
    if not served.has_draft:
        field = "speculative" if wire.speculative else "num_assistant_tokens"
        raise InvalidParam(field, "is not supported: the server has no draft model")
    return {}


_DERIVATIONS: Mapping[type[StrategyParams], Callable[[Decoding, Served], Awaitable[Derived]]] = {
    Guided: _guided,
    KlGuided: _kl_guided,
    Pmi: _pmi,
    Entropix: _entropix,
    Sed: _sed,
    Dola: _dola,
    Assisted: _assisted,
}


async def _context(given: Context, field: str, served: Served) -> tuple[int, ...]:
    """A prompt of its own, special tokens and all; where there is an encoder, a source."""
    ids = (await served.tokenizer.encode_all([given]))[0].ids if isinstance(given, str) else tuple(given)
    if served.encoder is not None and len(ids) > served.encoder.max_source_len:
        raise InvalidParam(field, f"must have at most the {served.encoder.max_source_len} tokens of a source")
    return _checked(ids, field, served)


async def _no_source(field: str, served: Served) -> tuple[int, ...]:
    """What an encoder reads where there is no text: the special tokens around it, else the end of text."""
    ids = (await served.tokenizer.encode_all([""]))[0].ids or served.eos_token_ids[:1]
    if not ids:
        raise InvalidParam(field, "is required: the model has no token that ends a text")
    return ids


async def _continuing(text: str, field: str, served: Served) -> tuple[int, ...]:
    if served.tokenizer.vocabulary.strips_first_space:
        text = text.removeprefix(" ")
    return _checked((await served.tokenizer.encode_all([text], add_special_tokens=False))[0].ids, field, served)


def _checked(ids: tuple[int, ...], field: str, served: Served) -> tuple[int, ...]:
    if not ids:
        raise InvalidParam(field, "must hold at least one token")
    if not 0 <= min(ids) <= max(ids) < served.vocab_size:
        raise InvalidParam(field, f"must hold token ids below {served.vocab_size}")
    if served.encoder is None and len(ids) >= served.max_model_len:
        raise InvalidParam(field, f"must be shorter than the context of {served.max_model_len} tokens")
    return ids

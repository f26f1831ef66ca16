"""A GGUF file's vocabulary as tokenizer.json: byte-level BPE ("gpt2") and SentencePiece ("llama").

Made of the file's own tokens, types, merges or scores; nothing is added. How a text is cut before merging is
`splits.py`'s. Other kinds (WordPiece, unigram …) are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from decoding.gguf.reader import Reader, UnsupportedFile
from decoding.gguf.splits import split_of

Part = dict[str, Any]  # of a JSON document

_SPACE = "\u2581"
_NAMES = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}  # GGUF's -> transformers'
_ENDS = ("eos", "eot", "eom")  # of the text, a turn, a message
# Ends of turns by name: older files have the token and do not say what it is for.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>")
_SENTENCEPIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}  # where the file names none


class TokenType(IntEnum):
    """tokenizer.ggml.token_type"""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """tokens and types: by id. special: GGUF's names of the special tokens -> their ids."""

    tokens: tuple[str, ...]
    types: tuple[int, ...]
    special: dict[str, int]
    is_byte_level: bool
    adds_bos: bool
    adds_eos: bool

    def token(self, name: str) -> str | None:
        return self.tokens[self.special[name]] if name in self.special else None

    @property
    def ids(self) -> dict[str, int]:
        return {token: token_id for token_id, token in enumerate(self.tokens)}


def vocabulary_of(reader: Reader, size: int) -> Vocabulary:
    """size: of the embedding. Raises UnsupportedFile."""
    kind = reader.value("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedFile(
            f"the GGUF file's tokenizer is of type {kind!r}; those that can be served are gpt2, llama"
        )
    tokens = tuple(token or f"[EMPTY_{i}]" for i, token in enumerate(reader.value("tokenizer.ggml.tokens")))
    types = tuple(reader.value_or("tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens)))
    if len(tokens) != len(set(tokens)) or len(types) != len(tokens) or len(tokens) > size:
        raise UnsupportedFile("the GGUF file's vocabulary names a token twice, or does not match its types or weights")
    is_byte_level = kind == "gpt2"
    begins = split_of(reader.value("tokenizer.ggml.pre")).begins if is_byte_level else True
    return Vocabulary(
        tokens=tokens,
        types=types,
        special=_special(reader, len(tokens), {} if is_byte_level else _SENTENCEPIECE_IDS),
        is_byte_level=is_byte_level,
        adds_bos=reader.value_or("tokenizer.ggml.add_bos_token", begins),
        adds_eos=reader.value_or("tokenizer.ggml.add_eos_token", False),
    )


def special_ids(vocabulary: Vocabulary) -> Part:
    """bos, eos and pad ids as config.json has them: eos is a list where a turn ends otherwise than a text."""
    ends = list(dict.fromkeys((*_named_ends(vocabulary), *_turn_end(vocabulary))))
    ids = {"bos": vocabulary.special.get("bos"), "eos": ends[0] if len(ends) == 1 else ends or None}
    ids["pad"] = vocabulary.special.get("padding")
    return {f"{name}_token_id": token_id for name, token_id in ids.items() if token_id is not None}


def _named_ends(vocabulary: Vocabulary) -> Iterator[int]:
    return (vocabulary.special[name] for name in _ENDS if name in vocabulary.special)


def _turn_end(vocabulary: Vocabulary) -> Iterator[int]:
    """The end of a turn that the file does not name, known by its text. Only control tokens are: others are words."""
    if "eot" not in vocabulary.special:
        ids = vocabulary.ids
        known = (ids[token] for token in _TURN_ENDS if token in ids)
        yield from (token_id for token_id in known if vocabulary.types[token_id] == TokenType.CONTROL)


def tokenizer_config(vocabulary: Vocabulary, max_length: int) -> Part:
    named = {f"{own}_token": vocabulary.token(name) for name, own in _NAMES.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in named.items() if token is not None},
    }


def tokenizer_json(reader: Reader, vocabulary: Vocabulary) -> Part:
    """Raises UnsupportedFile."""
    parts = _byte_level(reader, vocabulary) if vocabulary.is_byte_level else _sentencepiece(reader, vocabulary)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(_added(vocabulary)),
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": _post_processor(vocabulary),
        "decoder": parts["decoder"],
        "model": parts["model"],
    }


def _byte_level(reader: Reader, vocabulary: Vocabulary) -> Part:
    split = split_of(reader.value("tokenizer.ggml.pre"))
    merges = [merge.split(" ") for merge in reader.value("tokenizer.ggml.merges")]
    ids = vocabulary.ids
    if any(len(merge) != 2 or not ids.keys() >= {*merge, "".join(merge)} for merge in merges):
        raise UnsupportedFile("the GGUF file's merges do not match its vocabulary")
    model = _bpe(ids, merges, unknown=None)
    return {
        "normalizer": {"type": "NFC"} if split.composes else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split.pre_tokenizers},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model | ({"ignore_merges": True} if split.takes_whole else {}),
    }


def _sentencepiece(reader: Reader, vocabulary: Vocabulary) -> Part:
    """As transformers writes Llama 2's: spaces are ▁, one is put before a text, unknown characters fall into bytes."""
    prefixes = reader.value_or("tokenizer.ggml.add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixes else []),
    ]
    prepend = [{"type": "Prepend", "prepend": _SPACE}] if prefixes else []
    scores = reader.value("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary.tokens):
        raise UnsupportedFile("the GGUF file's scores do not match its vocabulary")
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocabulary.ids, _merges(vocabulary, scores), unknown=vocabulary.token("unknown")),
    }


def _bpe(ids: dict[str, int], merges: list[list[str]], unknown: str | None) -> Part:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": unknown is not None,
        "vocab": ids,
        "merges": merges,
    }


def _merges(vocabulary: Vocabulary, scores: Sequence[float]) -> list[list[str]]:
    """SentencePiece joins the neighbours whose union has the highest score: every way to make a token is a merge.

    Of one score the longer left part comes first, as transformers has it.
    """
    mergeable = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    ids = {token: i for i, token in enumerate(vocabulary.tokens) if vocabulary.types[i] in mergeable}
    found = [
        (-scores[i], -cut, cut - len(token), ids[token[:cut]], ids[token[cut:]])
        for token, i in ids.items()
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    return [[vocabulary.tokens[left], vocabulary.tokens[right]] for *_, left, right in sorted(found)]


def _added(vocabulary: Vocabulary) -> Iterator[Part]:
    """Tokens that are found in a text as they are: control tokens (special), and those that users defined."""
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind in (*special, TokenType.USER_DEFINED):
            flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            yield {"id": token_id, "content": token, **flags, "special": kind in special}


def _post_processor(vocabulary: Vocabulary) -> Part | None:
    before, after = (
        name if adds else None for name, adds in (("bos", vocabulary.adds_bos), ("eos", vocabulary.adds_eos))
    )
    around = [name for name in (before, after) if name is not None]
    if not around:
        return None
    tokens = {name: vocabulary.token(name) for name in around}
    if None in tokens.values():
        raise UnsupportedFile(f"the GGUF file puts a token around texts that it does not name ({', '.join(around)})")

    def template(*sequences: str) -> list[Part]:
        texts = [{"Sequence": {"id": name, "type_id": 0}} for name in sequences]
        begin, end = (
            [{"SpecialToken": {"id": tokens[name], "type_id": 0}}] if name else [] for name in (before, after)
        )
        return [*begin, *texts, *end]

    return {
        "type": "TemplateProcessing",
        "single": template("A"),
        "pair": template("A", "B"),
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.special[name]], "tokens": [token]} for name, token in tokens.items()
        },
    }


def _special(reader: Reader, size: int, defaults: dict[str, int]) -> dict[str, int]:
    """Ids beyond the vocabulary are none."""
    names = (*_NAMES, *_ENDS[1:])
    found = {name: reader.value_or(f"tokenizer.ggml.{name}_token_id", defaults.get(name)) for name in names}
    return {name: token_id for name, token_id in found.items() if token_id is not None and 0 <= token_id < size}

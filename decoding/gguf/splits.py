"""How byte-level BPE cuts a text before it merges, by the name in `tokenizer.ggml.pre`: what the models' authors wrote.

GGUF holds the name alone. The expressions are those of the published tokenizer.json files, which llama.cpp rewrites for
its own engine. A name that is not here is refused: a wrong cut gives a model tokens that it was never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from decoding.gguf.reader import UnsupportedFile

Part = dict[str, Any]  # of tokenizer.json

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LOWERED, _RAISED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}{a}{_LOWER}{b}" for a, b in (("*", "+"), ("+", "*")))

_LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_SIGNS}|{_SPACE}"
_TEKKEN = rf"{_LOWERED}|{_RAISED}|\p{{N}}|{_SIGNS_AND_SLASHES}|{_SPACE}"
_GPT4O = rf"{_LOWERED}{_CONTRACTIONS}?|{_RAISED}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_SIGNS_AND_SLASHES}|{_SPACE}"

_DIGITS: Part = {"type": "Digits", "individual_digits": True}


@dataclass(frozen=True, slots=True)
class Split:
    """expression: None for GPT-2's own. takes_whole: a piece that is a token needs no merges. begins: BOS goes before a
    text unless the file says otherwise. composes: text is brought into Unicode's composed form first."""

    expression: str | None = None
    parts: tuple[Part, ...] = ()
    takes_whole: bool = False
    begins: bool = False
    composes: bool = False

    @property
    def pre_tokenizers(self) -> list[Part]:
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        if self.expression is None:
            return [*self.parts, {**byte_level, "use_regex": True}]
        cut = {"type": "Split", "pattern": {"Regex": self.expression}, "behavior": "Isolated", "invert": False}
        return [*self.parts, cut, {**byte_level, "use_regex": False}]


SPLITS: Mapping[str, Split] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo"), Split()),
    **dict.fromkeys(("smollm", "starcoder", "refact"), Split(parts=(_DIGITS,))),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe"), Split(_LLAMA3, takes_whole=True, begins=True)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Split(_LLAMA3)),
    "qwen2": Split(_QWEN2, composes=True),
    "deepseek-r1-qwen": Split(_QWEN2),
    "stablelm2": Split(_QWEN2),
    "tekken": Split(_TEKKEN, takes_whole=True, begins=True),
    "gpt-4o": Split(_GPT4O),
}


def split_of(name: str) -> Split:
    """Raises UnsupportedFile."""
    if name not in SPLITS:
        known = ", ".join(SPLITS)
        raise UnsupportedFile(f"the GGUF file's pre-tokenizer is {name!r}; those that can be served are {known}")
    return SPLITS[name]

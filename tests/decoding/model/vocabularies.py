"""Tiny model folders as they are published: with the files of a vocabulary, and without tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers
from transformers.models.m2m_100.tokenization_m2m_100 import FAIRSEQ_LANGUAGE_CODES

TEXTS = (
    "the quick brown fox jumps over the lazy dog", "a cat sat on the mat and ran in the fog", "hello world, hello",
    "der Hund schläft. das Haus", "ein großer roter Hut, zwei Füße",
) * 20  # fmt: skip


def marian(folder: Path) -> Path:
    """Two SentencePiece models and a vocab.json, which lacks some of their pieces."""
    _folder(folder, "marian", {"source_lang": "en", "target_lang": "de", "tokenizer_class": "MarianTokenizer"})
    source = _pieces(folder / "source.spm", "unigram", 70, TEXTS)
    target = _pieces(folder / "target.spm", "unigram", 60, TEXTS[3:])
    _number(folder, ["</s>", "<unk>", *dict.fromkeys(source[:-3] + target), ">>fra<<", ">>deu<<", "<pad>"])
    return folder


def m2m100(folder: Path, kind: str = "bpe") -> Path:
    """A SentencePiece model and a vocab.json; the languages' tokens stand behind it and in no file of it."""
    _folder(folder, "m2m_100", {"src_lang": "en", "tokenizer_class": "M2M100Tokenizer"})
    languages = [f"__{code}__" for code in FAIRSEQ_LANGUAGE_CODES["m2m100"]]
    (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": languages}))
    pieces = _pieces(folder / "sentencepiece.bpe.model", kind, 90, TEXTS)
    _number(folder, ["<s>", "<pad>", "</s>", "<unk>", *pieces[:-3]])
    return folder


def m2m100_of_unigrams(folder: Path) -> Path:
    return m2m100(folder, "unigram")


def mt5(folder: Path) -> Path:
    """One SentencePiece model."""
    _folder(folder, "mt5", {})
    _pieces(folder / "spiece.model", "unigram", 80, TEXTS)
    return folder


def opt(folder: Path) -> Path:
    """vocab.json and merges.txt."""
    own = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>", "add_bos_token": True}
    _folder(folder, "opt", own | {"tokenizer_class": "GPT2Tokenizer"})
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    named = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=named, show_progress=False)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.model.save(str(folder))
    return folder


def _folder(folder: Path, model_type: str, tokenizer_config: dict[str, object]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))


def _number(folder: Path, tokens: list[str]) -> None:
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))


def _pieces(file: Path, kind: str, size: int, texts: Iterable[str]) -> list[str]:
    """Of a model that is trained and written; without its three control tokens."""
    prefix = file.with_name("trained")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(prefix),
        vocab_size=size,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    prefix.with_suffix(".model").rename(file)
    words = prefix.with_suffix(".vocab")
    pieces = [line.split("\t")[0] for line in words.read_text(encoding="utf-8").splitlines()]
    words.unlink()
    return pieces[3:]

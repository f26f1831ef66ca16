"""How an answer is written: what `stream.py` and `reply.py` ask of each endpoint's format."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from server.answer.answer import Answer
from server.answer.choice import Piece
from server.wire.answers import ChatChunk, ChoiceDecoding, Completion, Decoding, Usage


@dataclass(frozen=True, slots=True)
class Stamp:
    """What stays the same over an answer and all its chunks."""

    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def new(cls, prefix: str, model: str) -> Stamp:
        return cls(f"{prefix}-{secrets.token_hex(16)}", model)


@dataclass(frozen=True, slots=True)
class Extras:
    """The fields a chunk bears beside its choice."""

    usage: Usage | UnsetType | None = UNSET
    decoding: Decoding | UnsetType = UNSET


class Whole(Protocol):
    """How a plain answer is written."""

    def whole(self, answer: Answer, choices: Sequence[Piece]) -> msgspec.Struct:
        """The plain answer."""


class Format(Whole, Protocol):
    """One endpoint's objects."""

    @property
    def has_openings(self) -> bool:
        """Whether each choice of a stream starts with a chunk of its own."""

    def begin(self, answer: Answer, choice: int, extras: Extras) -> msgspec.Struct:
        """The chunk that opens a choice, before its first piece."""

    def delta(self, choice: int, piece: Piece, extras: Extras) -> Completion | ChatChunk:
        """The chunk of one piece."""

    def end(self, extras: Extras) -> msgspec.Struct:
        """The chunk without choices, which bears the usage."""


def choice_decoding(piece: Piece) -> ChoiceDecoding | UnsetType:
    score = {} if piece.score is None else {"score": piece.score}
    return {**score, **piece.figures} or UNSET

"""Placeholder until the text module is merged."""

from __future__ import annotations

from pathlib import Path
from typing import Self


class Tokenizer:
    @classmethod
    def from_directory(cls, directory: Path) -> Self:  # noqa: ARG003
        return cls()

    def token_bytes(self) -> tuple[bytes, ...]:
        return ()

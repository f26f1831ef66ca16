"""`polydecode check MODULE …`: whether a plugin keeps what must hold in a batch (`decoding/check/`)."""

from __future__ import annotations

from collections.abc import Sequence

from decoding.check.__main__ import main as check


def main(arguments: Sequence[str]) -> int:
    return check(arguments)

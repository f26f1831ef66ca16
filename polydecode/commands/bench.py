"""`polydecode bench …`: the load generator, `python -m loadtest`, which measures servers from outside."""

from __future__ import annotations

from collections.abc import Sequence

from polydecode.commands.flags import fail


def main(arguments: Sequence[str]) -> int:
    try:
        from loadtest.__main__ import main as loadtest  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError as missing:
        return fail(f"bench needs {missing.name}: pip install 'polydecode[loadtest]'")
    return loadtest(list(arguments))

"""A kernel that compiles in no time."""

from __future__ import annotations

from decoding.kernels.compiled import kernel, record


def _nothing(_pointer):  # type: ignore[no-untyped-def]
    return


TINY = kernel(record(out="address"))(_nothing)

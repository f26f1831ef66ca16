"""The decode kernel's parameters, one changed at a time: stages, warps, keys a block, keys a span; attention alone.

Stages and warps are given to the kernel over whatever the backend gives it, so that the backend need not know of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from decoding.attention.interface import DecodeInputs, LayerSpec, PagedAttention
from decoding.attention.pages import LayerShape
from loadtest.engine.machine import seconds_each
from loadtest.gpu_accept.kernels import Case, require_triton
from loadtest.gpu_accept.report import Figure
from loadtest.gpu_accept.session import Session

LAYERS = 4
"""One after the other, so that no cache holds the keys of the next."""
LOADS = ((64, 1024), (256, 256), (1, 32768))
TINY_LOADS = ((2, 40),)


@dataclass(frozen=True, slots=True)
class Variant:
    """made: how the backend is built. launched: how its kernel is."""

    name: str
    made: Mapping[str, Any] = field(default_factory=dict)
    launched: Mapping[str, Any] = field(default_factory=dict)


VARIANTS = (
    Variant("as it is"),
    *(Variant(f"{count} stages", launched={"num_stages": count}) for count in (2, 3, 4, 5, 6)),
    *(Variant(f"{count} warps", launched={"num_warps": count}) for count in (2, 4, 8)),
    *(Variant(f"blocks of {count} keys", made={"block": count}) for count in (32, 64, 128)),
    *(Variant(f"spans of {count} keys", made={"span": count}) for count in (128, 256, 512)),
)
TINY_VARIANTS = (
    Variant("as it is", made={"block": 16, "span": 32}),
    Variant("blocks of 32 keys", made={"block": 32, "span": 32}),
)


def sweep(session: Session) -> Iterator[Figure]:
    require_triton(session)
    loads = LOADS if session.is_gpu else TINY_LOADS
    for variant in VARIANTS if session.is_gpu else TINY_VARIANTS:
        try:
            with _launched(variant):
                times = [_seconds(session, variant, *load) * 1e6 for load in loads]
        except Exception as error:  # a variant may need more shared memory than there is
            yield Figure(variant.name, float("nan"), "us", note=f"{type(error).__name__}: {error}"[:100])
            continue
        others = [f"{rows} x {context}: {us:.0f}" for (rows, context), us in zip(loads[1:], times[1:], strict=True)]
        yield Figure(f"{loads[0][0]} x {loads[0][1]}, {variant.name}", times[0], "us", note=", ".join(others))


def _seconds(session: Session, variant: Variant, rows: int, context: int) -> float:
    shape = LayerShape(32, 8, 128, 128) if session.is_gpu else LayerShape(2, 1, 16, 16)
    made = _backend(session, Case("sweep", shape, session.dtype), variant)
    each = -(-context // made.page_size)
    made.allocate(1 + rows * each)
    for pages in (*made.pages.keys, *made.pages.values):
        pages.normal_()
    options: dict[str, Any] = {"device": session.device, "dtype": torch.int64}
    tables = 1 + torch.randperm(rows * each, device=session.device).view(rows, each)
    positions = torch.full((rows,), context - 1, **options)
    slots = tables[:, -1] * made.page_size + (context - 1) % made.page_size
    inputs = DecodeInputs(torch.zeros(rows, **options), positions, slots, positions + 1, tables)
    plan = made.decode_plan(inputs)
    query, key, value = (
        torch.randn(1, heads, rows, shape.head_dim, device=session.device).to(session.dtype)
        for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
    )
    specs = [LayerSpec(layer, shape.head_dim**-0.5) for layer in range(LAYERS)]
    works = [partial(made.forward, spec, query, key, value, plan) for spec in specs]
    return seconds_each(works, session.device, session.scale.repeats)


def _backend(session: Session, case: Case, variant: Variant) -> PagedAttention:
    from decoding.attention.triton import TritonAttention  # noqa: PLC0415 - needs triton

    return TritonAttention([case.shape] * LAYERS, device=session.device, dtype=case.dtype, **variant.made)


class _Overridden:
    """A kernel that is launched with some options of ours."""

    def __init__(self, kernel: Any, options: Mapping[str, Any]) -> None:
        self._kernel, self._options = kernel, options

    def __getitem__(self, grid: Any) -> Any:
        launch = self._kernel[grid]
        return lambda *args, **options: launch(*args, **{**options, **self._options})


@contextmanager
def _launched(variant: Variant) -> Iterator[None]:
    from decoding.kernels.gpu import attend as kernels  # noqa: PLC0415 - needs triton

    plain = kernels.attend
    if variant.launched:
        kernels.attend = _Overridden(plain, variant.launched)
    try:
        yield
    finally:
        kernels.attend = plain

"""How a loaded model is made ready: a recipe for each kind of machine, weights and promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from decoding.attention.interface import PagedAttention
from decoding.contract.quantize import Quantize, Rounding
from decoding.device import has_triton
from decoding.kernels import cpu as kernels
from decoding.model.attention_function import TracedAttention
from decoding.model.compatibility import UnsupportedModel
from decoding.model.quantize import ROUNDED, check_model, round_linears
from decoding.model.replace_modules import (
    KNOWN,
    Progress,
    bare_products,
    make_fast,
    make_row_exact,
    widen,
)
from decoding.model.torchao_weights import quantise_linears


def _nothing(*_args: Any) -> None:
    return None


def _row_exact(part: nn.Module, progress: Progress, rounding: Rounding) -> None:
    make_row_exact(part, progress, rounding)
    if rounding != "none":
        check_model(rounding, type(part).__name__, list(bare_products(part)))


def _row_exact_from_bfloat16(part: nn.Module, progress: Progress, rounding: Rounding) -> None:
    widen(part)
    make_row_exact(part, progress, rounding)


def _fast(part: nn.Module, _progress: Progress, _rounding: Rounding) -> None:
    if not has_triton():
        make_fast(part)
        return
    from decoding.model.gpu.products import PlainProduct  # noqa: PLC0415 - needs triton

    make_fast(part, PlainProduct)


def _fuse_compiled(
    blocks: nn.ModuleList, traced: TracedAttention, attention: PagedAttention, progress: Progress, rounding: Rounding
) -> bool:
    if not kernels.available():
        return False
    from decoding.attention.compiled import CompiledAttention  # noqa: PLC0415 - needs numba
    from decoding.kernels.cpu.tile import format_for  # noqa: PLC0415
    from decoding.model.fused import fuse_layers  # noqa: PLC0415

    if not isinstance(attention, CompiledAttention):
        return False
    return fuse_layers(blocks, traced, attention, progress, format_for(rounding))


def _fuse_fast(
    blocks: nn.ModuleList, traced: TracedAttention, attention: PagedAttention, progress: Progress, _rounding: Rounding
) -> bool:
    if has_triton():
        from decoding.model.gpu.fused import fuse_over  # noqa: PLC0415 - needs triton
        from decoding.model.gpu.products import PlainProduct  # noqa: PLC0415

        fuse_over(attention, blocks, traced, PlainProduct, progress)
    return False


def _invariant(part: nn.Module, _progress: Progress, _rounding: Rounding) -> None:
    from decoding.model.gpu.invariant import NotRowExact, make_batch_invariant  # noqa: PLC0415 - needs triton

    try:
        make_batch_invariant(part)
    except NotRowExact as error:
        raise UnsupportedModel(type(part).__name__, f"cannot be batch invariant: {error}") from error


def _fuse_invariant(
    blocks: nn.ModuleList, traced: TracedAttention, attention: PagedAttention, progress: Progress, _rounding: Rounding
) -> bool:
    from decoding.model.gpu.fused import fuse_over  # noqa: PLC0415 - needs triton
    from decoding.model.gpu.invariant import NotRowExact, tested_product  # noqa: PLC0415

    try:
        fuse_over(attention, blocks, traced, tested_product(), progress)
    except NotRowExact as error:
        raise UnsupportedModel(type(blocks[0]).__name__, f"cannot be batch invariant: {error}") from error
    return False


def _round_to_fp8(lm: Any, quantize: Any) -> None:
    from decoding.model.gpu.fp8 import round_linears as round_to_fp8  # noqa: PLC0415 - needs triton

    check_model(quantize, type(lm).__name__, list(bare_products(lm, known=(nn.Embedding, nn.Linear))))
    round_to_fp8(lm)


def _fp8(part: nn.Module, _progress: Progress, _rounding: Rounding) -> None:
    from decoding.model.gpu.fp8 import replace_linears  # noqa: PLC0415 - needs triton

    replace_linears(part)


def _fuse_fp8(
    blocks: nn.ModuleList, traced: TracedAttention, attention: PagedAttention, progress: Progress, _rounding: Rounding
) -> bool:
    from decoding.model.gpu.fp8 import Fp8Product  # noqa: PLC0415 - needs triton
    from decoding.model.gpu.fused import fuse_over  # noqa: PLC0415

    fuse_over(attention, blocks, traced, Fp8Product, progress)
    return False


Fuse = Callable[[nn.ModuleList, TracedAttention, PagedAttention, Progress, Rounding], bool]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Two steps: the first may change what the model gives, the second must not, and it is tried that it does not."""

    quantise: Callable[[Any, Any], None]
    replace_modules: Callable[[nn.Module, Progress, Rounding], None]
    fuse: Fuse | None = None  # layers into kernels of our own, where the attention backend goes with them
    rounds_inputs: bool = False  # each product does, beside its weights
    rounding: Rounding = "none"

    def cache_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of keys and values, where products are in that one: no finer than what the weights are rounded to."""
        return torch.bfloat16 if self.rounds_inputs else dtype

    def change_weights(self, lm: Any) -> None:
        self.quantise(lm, self.rounding)

    def fuse_layers(
        self, blocks: nn.ModuleList, traced: TracedAttention, attention: PagedAttention, progress: Progress
    ) -> bool:
        """Returns whether all layers now run in compiled kernels of the CPU."""
        return self.fuse is not None and self.fuse(blocks, traced, attention, progress, self.rounding)

    def rebuild(self, part: nn.Module, progress: Progress) -> None:
        """part: the whole model, or a piece of it by itself."""
        self.replace_modules(part, progress, self.rounding)


RECIPES: Mapping[str, Recipe] = {
    "cpu_exact": Recipe(_nothing, _row_exact, fuse=_fuse_compiled),
    "cpu_bfloat16": Recipe(_nothing, _row_exact_from_bfloat16, fuse=_fuse_compiled),
    "cpu_rounded": Recipe(round_linears, _row_exact, fuse=_fuse_compiled, rounds_inputs=True),
    "gpu_fast": Recipe(_nothing, _fast, fuse=_fuse_fast),
    "gpu_invariant": Recipe(_nothing, _invariant, fuse=_fuse_invariant),
    "gpu_fp8": Recipe(_round_to_fp8, _fp8, fuse=_fuse_fp8, rounds_inputs=True),
    "gpu_int4": Recipe(quantise_linears, _nothing),  # which makes the model fast, too
}


def choose(lm: Any, quantize: Quantize, *, is_batch_invariant: bool) -> Recipe:
    """is_batch_invariant: costs nothing on the CPU, whose rows are always exact, and much on a GPU."""
    is_cpu = lm.device.type == "cpu"
    if quantize != "none":
        name = "cpu_rounded" if is_cpu and quantize in ROUNDED else f"gpu_{quantize}"
        return replace(RECIPES[name], rounding=quantize)
    if is_cpu:
        return replace(RECIPES["cpu_bfloat16"], rounding="bfloat16") if _packs_bfloat16(lm) else RECIPES["cpu_exact"]
    return RECIPES["gpu_invariant" if is_batch_invariant else "gpu_fast"]


def _packs_bfloat16(lm: Any) -> bool:
    """Whether a model loaded in bfloat16 runs in compiled kernels; what multiplies by itself is left to torch."""
    return lm.dtype == torch.bfloat16 and kernels.available() and not any(bare_products(lm, known=KNOWN))

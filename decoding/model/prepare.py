"""How a loaded model is made ready: a recipe for each kind of machine, weights and promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from decoding.contract.quantize import Quantize, Rounding
from decoding.kernels import cpu as kernels
from decoding.model.compatibility import UnsupportedModel
from decoding.model.quantize import ROUNDED, check_model, round_linears
from decoding.model.replace_modules import (
    KNOWN,
    NotRowExact,
    Progress,
    bare_products,
    make_batch_invariant,
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
    make_fast(part)


def _invariant(part: nn.Module, _progress: Progress, _rounding: Rounding) -> None:
    try:
        make_batch_invariant(part)
    except NotRowExact as error:
        raise UnsupportedModel(type(part).__name__, f"cannot be batch invariant: {error}") from error


@dataclass(frozen=True, slots=True)
class Recipe:
    """Two steps: the first may change what the model gives, the second must not, and it is tried that it does not."""

    quantise: Callable[[Any, Any], None]
    replace_modules: Callable[[nn.Module, Progress, Rounding], None]
    fuses_layers: bool = False  # into kernels of our own, where the attention backend has them
    rounds_inputs: bool = False  # each product does, beside its weights
    rounding: Rounding = "none"

    def cache_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of keys and values, where products are in that one: no finer than what the weights are rounded to."""
        return torch.bfloat16 if self.rounds_inputs else dtype

    def change_weights(self, lm: Any) -> None:
        self.quantise(lm, self.rounding)

    def rebuild(self, part: nn.Module, progress: Progress) -> None:
        """part: the whole model, or a piece of it by itself."""
        self.replace_modules(part, progress, self.rounding)


RECIPES: Mapping[str, Recipe] = {
    "cpu_exact": Recipe(_nothing, _row_exact, fuses_layers=True),
    "cpu_bfloat16": Recipe(_nothing, _row_exact_from_bfloat16, fuses_layers=True),
    "cpu_rounded": Recipe(round_linears, _row_exact, fuses_layers=True, rounds_inputs=True),
    "gpu_fast": Recipe(_nothing, _fast),
    "gpu_invariant": Recipe(_nothing, _invariant),
    "gpu_quantised": Recipe(quantise_linears, _nothing),  # which makes the model fast, too
}


def choose(lm: Any, quantize: Quantize, *, is_batch_invariant: bool) -> Recipe:
    """is_batch_invariant: costs nothing on the CPU, whose rows are always exact, and much on a GPU."""
    is_cpu = lm.device.type == "cpu"
    if quantize != "none":
        name = "cpu_rounded" if is_cpu and quantize in ROUNDED else "gpu_quantised"
        return replace(RECIPES[name], rounding=quantize)
    if is_cpu:
        return replace(RECIPES["cpu_bfloat16"], rounding="bfloat16") if _packs_bfloat16(lm) else RECIPES["cpu_exact"]
    return RECIPES["gpu_invariant" if is_batch_invariant else "gpu_fast"]


def _packs_bfloat16(lm: Any) -> bool:
    """Whether a model loaded in bfloat16 runs in compiled kernels; what multiplies by itself is left to torch."""
    return lm.dtype == torch.bfloat16 and kernels.available() and not any(bare_products(lm, known=KNOWN))

"""How a loaded model is made ready: a recipe for each kind of machine, weights and promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from decoding.contract.quantize import Quantize
from decoding.model.compatibility import UnsupportedModel
from decoding.model.quantize import ROUNDED, check_model, round_linears
from decoding.model.replace_modules import (
    NotRowExact,
    Progress,
    bare_products,
    make_batch_invariant,
    make_fast,
    make_row_exact,
)
from decoding.model.torchao_weights import quantise_linears


def _nothing(*_args: Any) -> None:
    return None


def _row_exact(part: nn.Module, progress: Progress, quantize: Quantize) -> None:
    make_row_exact(part, progress, quantize)
    if quantize != "none":
        check_model(quantize, type(part).__name__, list(bare_products(part)))


def _fast(part: nn.Module, _progress: Progress, _quantize: Quantize) -> None:
    make_fast(part)


def _invariant(part: nn.Module, _progress: Progress, _quantize: Quantize) -> None:
    try:
        make_batch_invariant(part)
    except NotRowExact as error:
        raise UnsupportedModel(type(part).__name__, f"cannot be batch invariant: {error}") from error


@dataclass(frozen=True, slots=True)
class Recipe:
    """Two steps: the first may change what the model gives, the second must not, and it is tried that it does not."""

    quantise: Callable[[Any, Quantize], None]
    replace_modules: Callable[[nn.Module, Progress, Quantize], None]
    fuses_layers: bool = False  # into kernels of our own, where the attention backend has them
    rounds_inputs: bool = False  # each product does, beside its weights
    quantize: Quantize = "none"

    def change_weights(self, lm: Any) -> None:
        self.quantise(lm, self.quantize)

    def rebuild(self, part: nn.Module, progress: Progress) -> None:
        """part: the whole model, or a piece of it by itself."""
        self.replace_modules(part, progress, self.quantize)


RECIPES: Mapping[str, Recipe] = {
    "cpu_exact": Recipe(_nothing, _row_exact, fuses_layers=True),
    "cpu_rounded": Recipe(round_linears, _row_exact, fuses_layers=True, rounds_inputs=True),
    "gpu_fast": Recipe(_nothing, _fast),
    "gpu_invariant": Recipe(_nothing, _invariant),
    "gpu_quantised": Recipe(quantise_linears, _nothing),  # which makes the model fast, too
}


def choose(device: torch.device, quantize: Quantize, *, is_batch_invariant: bool) -> Recipe:
    """is_batch_invariant: costs nothing on the CPU, whose rows are always exact, and much on a GPU."""
    is_cpu = device.type == "cpu"
    if quantize != "none":
        name = "cpu_rounded" if is_cpu and quantize in ROUNDED else "gpu_quantised"
    elif is_cpu:
        name = "cpu_exact"
    else:
        name = "gpu_invariant" if is_batch_invariant else "gpu_fast"
    return replace(RECIPES[name], quantize=quantize)

"""Replaces a transformers model's modules by faster ones that compute rows independently of each other.

Owns which modules are replaced: linears (packed, merged where they share an input), activations, RMSNorms, and, for
models that multiply by bare parameters (mixtures of experts), the products themselves. Works by attribute names and
module types; never touches a model's forward code. The forward on a device other than the CPU keeps its own kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from decoding.contract.quantize import Rounding
from decoding.model.elementwise import RowExactActivation, fuse_norm, row_exact
from decoding.model.linear import (
    LinearFactory,
    LinearPart,
    MergedLinear,
    Product,
    num_bytes,
    pad_rows,
    smallest_multiple,
)
from decoding.model.quantize import head_of, of_module

Progress = Callable[[str, float], None]

MERGED_NAMES = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
KNOWN = (nn.Embedding, nn.Linear, Conv1D)
ACTIVATIONS = (nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.ReLU)


class PlainLinear(nn.Module):
    """x W^T + b as torch does it."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:  # [N, K], [N]
        super().__init__()
        self.weight, self.bias = weight, bias

    @property
    def weight_bytes(self) -> int:
        return num_bytes(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., K] -> [..., N]
        return F.linear(x, self.weight, self.bias)


def make_fast(model: nn.Module, build: Callable[..., nn.Module] = PlainLinear) -> None:
    """For a GPU: merge linears that share an input, fuse norms; leave everything else to torch.

    build: makes the merged linear.
    """
    for parent in list(model.modules()):
        for names in MERGED_NAMES:
            merge(parent, names, build)
        for name, child in list(parent.named_children()):
            fused = fuse_norm(child) if type(child).__name__.endswith("RMSNorm") else None
            if fused is not None:
                setattr(parent, name, fused)


def widen(model: nn.Module) -> None:
    """Keep in float32 whatever a model loaded in bfloat16 has besides products, which are packed as they are."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Embedding:
                setattr(parent, name, WideningEmbedding(child))
        if type(parent) not in KNOWN[1:]:
            for name, weight in parent.named_parameters(recurse=False):
                setattr(parent, name, nn.Parameter(weight.detach().float(), requires_grad=False))
            for name, values in parent.named_buffers(recurse=False):
                if values.is_floating_point():
                    setattr(parent, name, values.float())


class WideningEmbedding(nn.Module):
    """Keeps bfloat16 vectors and gives float32 ones; of no dtype of its own, for models go by their parameters'."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.vectors = embedding.weight.detach()  # [vocab, hidden]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:  # [...] -> [..., hidden]
        return F.embedding(ids, self.vectors).float()


def make_row_exact(model: nn.Module, progress: Progress, rounding: Rounding = "none") -> None:
    """Replace, module by module, what could compute a row differently in other company; frees weights as it goes."""
    factory = LinearFactory(rounding=rounding)
    head = head_of(model)
    parents = list(model.modules())
    for index, parent in enumerate(parents):
        for names in MERGED_NAMES:
            merge(parent, names, factory.build)
        for name, child in list(parent.named_children()):
            replacement = _replacement(child, factory, of_module(rounding, child, head))
            if replacement is not None:
                setattr(parent, name, replacement)
        progress("packing weights", (index + 1) / len(parents))


def _replacement(module: nn.Module, factory: LinearFactory, rounding: Rounding) -> nn.Module | None:
    if type(module) is nn.Linear:
        return factory.build(module.weight, module.bias, rounding)
    if type(module) is Conv1D:
        return factory.build(module.weight.T, module.bias, rounding)
    if isinstance(module, ACTIVATIONS) or type(module).__module__ == "transformers.activations":
        return RowExactActivation(module)
    if type(module).__name__.endswith(("RMSNorm", "T5LayerNorm")):
        return fuse_norm(module)
    return None


def merge(parent: nn.Module, names: tuple[str, ...], build: Callable[..., nn.Module]) -> None:
    """Put one product behind the linears `names` of `parent`, if it has them all and they agree on their input."""
    linears: list[Any] = [getattr(parent, name, None) for name in names]
    if not all(type(linear) is nn.Linear for linear in linears):
        return
    if len({(linear.in_features, linear.weight.dtype, linear.bias is None) for linear in linears}) > 1:
        return
    weight = torch.cat([linear.weight.detach() for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias.detach() for linear in linears])
    merged = MergedLinear(build(weight, bias), [linear.out_features for linear in linears])
    for index, name in enumerate(names):
        setattr(parent, name, LinearPart(merged, index))


def bare_products(model: nn.Module, known: tuple[type[nn.Module], ...] = (nn.Embedding,)) -> Iterator[str]:
    """Names of parameters that a forward must be multiplying by itself: matrices that no known module owns."""
    for name, module in model.named_modules():
        if not isinstance(module, known):
            yield from (f"{name}.{key}" for key, weight in module.named_parameters(recurse=False) if weight.dim() > 1)


class RowExactProducts(TorchFunctionMode):
    """While active, pads the rows of products with bare matrices, and steadies bare activations.

    Costs a microsecond on every torch call, so only models that need it run under it.
    """

    PRODUCTS = (F.linear, torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__)
    ACTIVATIONS = (torch.sigmoid, torch.Tensor.sigmoid, F.silu, F.gelu)

    def __init__(self) -> None:
        super().__init__()
        self._multiples: dict[tuple[Any, ...], int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.PRODUCTS and len(args) > 1 and args[1].dim() == 2:
            return self._product(lambda x: func(x, *args[1:], **kwargs), args[0], args[1])
        if func in self.ACTIVATIONS:
            return row_exact(lambda x: func(x, *args[1:], **kwargs), args[0])
        return func(*args, **kwargs)

    def _product(self, product: Product, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        key = (*weight.shape, *weight.stride(), x.dtype)
        if key not in self._multiples:

            def at(multiple: int) -> Product:
                return lambda rows: product(pad_rows(rows, multiple))[: len(rows)]

            self._multiples[key] = smallest_multiple(at, x.shape[-1], x.dtype)
        padded = pad_rows(flat, self._multiples[key])
        out = product(padded)[: len(flat)]
        return out.view(*x.shape[:-1], out.shape[-1])  # -1 would be ambiguous for an expert without tokens

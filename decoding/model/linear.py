"""Linear layers whose row results do not depend on how many rows are multiplied, and several of them in one product.

Owns the packed weights and the start-up self-test that decides, per weight shape, how this machine reaches
that promise. Knows nothing of models: `replace_modules.py` puts these in place of a model's own linears. The largest
thread count must be settled before the test runs: its verdict holds for that count and for all smaller ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from decoding.contract.quantize import Rounding
from decoding.kernels import cpu as kernels

# The packing hint of 16 rows gave one kernel for every row count tried (1..2048); the hint 1 did not.
PACK_HINT = 16
PROBED_ROWS = (*range(1, 18), 24, 64)
ROW_MULTIPLES = (1, 4, 8, 16, 32)
FIXED_ROWS = 64
PROBED_RESULTS = 4096

Product = Callable[[torch.Tensor], torch.Tensor]


def num_bytes(weight: torch.Tensor) -> int:
    """Of what is held; a tensor that wraps others, as quantised ones do, claims to be what it stands for."""
    inner = getattr(weight, "__tensor_flatten__", None)
    if inner is None:
        return weight.numel() * weight.element_size()
    return sum(num_bytes(getattr(weight, name)) for name in inner()[0])


class PackedLinear(nn.Module):
    """x W^T + b over a weight prepacked by oneDNN; the unpacked weight is not kept."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:  # [N, K], [N]
        super().__init__()
        self.shape = (weight.shape[0], weight.shape[1])
        self.weight = torch.empty(self.shape, dtype=weight.dtype, device="meta")  # models ask for its dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), PACK_HINT)
        self.bias = None if bias is None else bias.detach()

    @property
    def weight_bytes(self) -> int:
        return num_bytes(self.packed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., K] -> [..., N]
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]


class PaddedLinear(nn.Module):
    """x W^T + b in plain torch, rows padded to a multiple; at FIXED_ROWS, computed in blocks of exactly that many."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, multiple: int) -> None:  # [N, K], [N]
        super().__init__()
        self.shape = (weight.shape[0], weight.shape[1])
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.multiple = multiple

    @property
    def weight_bytes(self) -> int:
        return num_bytes(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., K] -> [..., N]
        flat = x.reshape(-1, x.shape[-1])
        if not len(flat):  # an expert without tokens
            return x.new_empty(*x.shape[:-1], self.shape[0])
        return self._padded(flat)[: len(flat)].view(*x.shape[:-1], self.shape[0])

    def _padded(self, x: torch.Tensor) -> torch.Tensor:  # [rows, K] -> [rows + padding, N]
        x = pad_rows(x, self.multiple)
        if self.multiple < FIXED_ROWS:
            return F.linear(x, self.weight, self.bias)
        # Blocks of one size run one kernel, and a kernel's row never depends on what the other rows hold.
        blocks = x.view(-1, self.multiple, x.shape[-1]).unbind()
        return torch.cat([F.linear(block, self.weight, self.bias) for block in blocks])


class MergedLinear:
    """Several linears of the same input as one product, computed when the first of them is called.

    The parts recognise the input by identity: a part called with another tensor computes the product afresh, so the
    result never depends on the order of the calls.
    """

    def __init__(self, product: nn.Module, sizes: Sequence[int]) -> None:
        self.product = product
        self._sizes = list(sizes)
        self._input: torch.Tensor | None = None
        self._slices: tuple[torch.Tensor, ...] = ()
        self._left = 0

    def part(self, index: int, x: torch.Tensor) -> torch.Tensor:  # [..., K] -> [..., sizes[index]]
        if self._input is not x:
            self._input, self._left = x, len(self._sizes)
            self._slices = self.product(x).split_with_sizes(self._sizes, -1)
        slice_ = self._slices[index]
        self._left -= 1
        if self._left == 0:
            self._input, self._slices = None, ()
        return slice_


class LinearPart(nn.Module):
    """One of the linears behind a MergedLinear; stands where the model had it."""

    def __init__(self, merged: MergedLinear, index: int) -> None:
        super().__init__()
        self._merged = merged
        self._index = index

    @property
    def weight_bytes(self) -> int:
        """Of all parts, at the first of them."""
        return weight_bytes(self._merged.product) if self._index == 0 else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., K] -> [..., N]
        return self._merged.part(self._index, x)


def weight_bytes(module: nn.Module) -> int:
    """Of the module's own products, not of its children's."""
    if type(module) is nn.Linear:
        return num_bytes(module.weight)
    found: int = getattr(module, "weight_bytes", 0)
    return found


class LinearFactory:
    """Builds row-exact linears, testing each distinct shape once; compiled ones need no test, and can be quantised."""

    def __init__(self, *, compiles: bool | None = None, rounding: Rounding = "none") -> None:
        self.rounding = rounding
        self._compiles = kernels.available() if compiles is None else compiles
        self._multiples: dict[tuple[int, int, torch.dtype, bool], int | None] = {}

    def build(self, weight: torch.Tensor, bias: torch.Tensor | None, rounding: Rounding | None = None) -> nn.Module:
        """Of weight [N, K] and bias [N], unless told otherwise as the whole model is rounded.

        A compiled linear; a packed one where the machine has them and they pass; else a padded one.
        """
        rounding = rounding or self.rounding
        is_known = weight.dtype == torch.float32 or rounding == "bfloat16"
        if self._compiles and is_known and weight.device.type == "cpu":
            return _compiled(weight, bias, rounding)
        key = (weight.shape[0], weight.shape[1], weight.dtype, bias is not None)
        if key not in self._multiples:
            self._multiples[key] = self._choose(weight, bias)
        multiple = self._multiples[key]
        return PackedLinear(weight, bias) if multiple is None else PaddedLinear(weight, bias, multiple)

    def _choose(self, weight: torch.Tensor, bias: torch.Tensor | None) -> int | None:
        """None: pack. A number: pad to this multiple."""
        columns = weight.shape[1]
        if can_pack(weight) and is_row_exact(PackedLinear(weight, bias), columns, weight.dtype):
            return None
        return smallest_multiple(partial(PaddedLinear, weight, bias), columns, weight.dtype)


def _compiled(weight: torch.Tensor, bias: torch.Tensor | None, rounding: Rounding) -> nn.Module:
    from decoding.kernels.cpu.panels import PanelLinear  # noqa: PLC0415 - needs numba
    from decoding.kernels.cpu.tile import format_for  # noqa: PLC0415

    return PanelLinear(weight, bias, form=format_for(rounding))


def can_pack(weight: torch.Tensor) -> bool:
    """Whether torch offers the (private) packed product for this weight here."""
    try:
        PackedLinear(weight[:16].clone(), None)(weight.new_zeros(1, weight.shape[1]))
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return weight.device.type == "cpu"


def smallest_multiple(padded: Callable[[int], Product], columns: int, dtype: torch.dtype) -> int:
    """To which multiple a product's rows must be padded to come out the same in any number."""
    exact = (multiple for multiple in ROW_MULTIPLES if is_row_exact(padded(multiple), columns, dtype))
    return next(exact, FIXED_ROWS)


def is_row_exact(product: Product, columns: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> bool:
    """Whether rows come out bitwise equal from batches of every probed size, and from fewer of torch's threads.

    A wrong kernel differs in the last bit of some results only, so products of few columns are tried on more rows.
    """
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(max(PROBED_ROWS), columns, generator=generator).to(dtype).to(device)
    expected = product(x)
    enough = -(-PROBED_RESULTS // expected.shape[1])
    return all(
        torch.equal(product(x[start : start + rows]), expected[start : start + rows])
        for rows in PROBED_ROWS
        for start in range(0, min(enough, len(x) - rows + 1), rows)
    ) and (x.device.type != "cpu" or _is_thread_exact(product, x, expected))


def _is_thread_exact(product: Product, x: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether any smaller number of threads gives the same, for one row and for many."""
    most = torch.get_num_threads()
    try:
        for count in range(1, most):
            torch.set_num_threads(count)
            if not torch.equal(product(x), expected) or not torch.equal(product(x[:1]), expected[:1]):
                return False
        return True
    finally:
        torch.set_num_threads(most)


def pad_rows(x: torch.Tensor, multiple: int) -> torch.Tensor:  # [rows, K] -> [rows up to a multiple, K]
    missing = -x.shape[0] % multiple
    return F.pad(x, (0, 0, 0, missing)) if missing else x

"""Weights in the layout of the products, and a linear over them. The unpacked weight is not kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from decoding.kernels.cpu.arena import shared_arena
from decoding.kernels.cpu.products import LINEAR, addresses, linear
from decoding.kernels.cpu.rounding import GROUP, round_groups, round_weight
from decoding.kernels.cpu.sharing import COUNTS_BYTES
from decoding.kernels.cpu.team import Team, default_team
from decoding.kernels.cpu.tile import PANEL, VECTORS, Format
from decoding.kernels.cpu.vectors import LANES


@dataclass(frozen=True, slots=True)
class Panels:
    """The bytes of a weight [columns, depth] as [columns / PANEL, depth, PANEL], columns and depth with padding.

    depth is that of the rows; whole numbers have more padding, to whole groups.
    """

    data: torch.Tensor
    form: Format
    columns: int
    depth: int

    @property
    def address(self) -> int:
        """Of the first panel."""
        return self.data.data_ptr()


def fits_bfloat16(weight: torch.Tensor) -> bool:
    """Whether bfloat16 holds every number of a float32 weight exactly, as it does where the checkpoint was bfloat16."""
    return torch.equal(weight.bfloat16().float(), weight)


def pack(weight: torch.Tensor, form: Format | None = None) -> Panels:  # [columns, depth]
    """In the given form, else in the smallest that loses nothing."""
    form = form or (Format.BFLOAT16 if fits_bfloat16(weight) else Format.FLOAT32)
    pad_depth = -weight.shape[1] % depth_multiple(form)
    padded = torch.nn.functional.pad(weight.detach(), (0, pad_depth, 0, -weight.shape[0] % PANEL))
    columns, depth = padded.shape
    return Panels(shared_arena().place(_bytes(padded, form)), form, columns, depth)


def depth_multiple(form: Format | None) -> int:
    """What the depth of a weight in that form is padded to."""
    return PANEL if form and form.rounds_rows else 1


def _bytes(weight: torch.Tensor, form: Format) -> torch.Tensor:  # [columns, depth]
    if form is Format.INT8:
        return _pack_int8(weight)
    if form is Format.INT4:
        return _pack_int4(weight)
    if form is Format.BFLOAT16_PAIRS:
        return _pack_pairs(weight)
    panels = weight.view(-1, PANEL, weight.shape[1]).transpose(1, 2)  # [panels, depth, PANEL]
    if form is Format.BFLOAT16:  # the columns of a panel's vectors by turns
        return panels.bfloat16().view(len(panels), -1, VECTORS, LANES).transpose(2, 3)
    return panels


def _pack_pairs(weight: torch.Tensor) -> torch.Tensor:  # [columns, depth] -> [columns / PANEL, depth / 2, PANEL]
    """Words of two bfloat16."""
    return weight.bfloat16().contiguous().view(torch.int32).view(-1, PANEL, weight.shape[1] // 2).transpose(1, 2)


def _pack_int8(weight: torch.Tensor) -> torch.Tensor:  # [columns, depth] -> bytes
    """[columns / PANEL, depth / 4, PANEL, 4], 128 too large, then the scales."""
    whole, scales = round_weight(weight)
    unsigned = (_whole_groups(whole, Format.INT8) + 128).to(torch.uint8).contiguous().view(torch.int32)
    words = unsigned.view(-1, PANEL, unsigned.shape[1]).transpose(1, 2)
    return torch.cat([part.contiguous().flatten().view(torch.uint8) for part in (words, scales)])


def _pack_int4(weight: torch.Tensor) -> torch.Tensor:  # [columns, depth] -> bytes
    """For each panel and group: words of eight k [4, PANEL], scales, least weights."""
    groups = round_groups(_whole_groups(weight, Format.INT4).contiguous())
    low, high = groups.whole.view(len(weight), -1, GROUP // 8, 2, 4).to(torch.uint8).unbind(3)
    words = (low + 16 * high).view(torch.int32)[..., 0]  # [columns, groups, 4]
    parts = [
        part.view(-1, PANEL, *part.shape[1:]).permute(0, 2, 3, 1).contiguous().view(torch.uint8)  # [panels, groups, …]
        for part in (words, groups.scales, groups.leasts)
    ]
    return torch.cat([part.flatten(2) for part in parts], 2).flatten()


def _whole_groups(numbers: torch.Tensor, form: Format) -> torch.Tensor:  # [columns, depth]
    return torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % form.depth))


def rounded_bytes(rows: int, depth: int) -> int:
    """Of rows in the largest form."""
    return rows * max(form.turns(depth) * form.row_bytes for form in Format if form.rounds_rows)


class PanelLinear(torch.nn.Module):
    """x W^T + b in float32."""

    def __init__(
        self,
        weight: torch.Tensor,  # [N, K]
        bias: torch.Tensor | None,  # [N]
        team: Team | None = None,
        form: Format | None = None,
        panels: Panels | None = None,
    ) -> None:
        """panels: the weight as it was packed before; of `weight` itself only the shape is then read."""
        super().__init__()
        self.shape = (weight.shape[0], weight.shape[1])
        if bias is not None and len(bias) != self.shape[0]:
            raise ValueError(f"a product of {self.shape[0]} columns was given a bias of {len(bias)}")
        self.weight = torch.empty(self.shape, dtype=torch.float32, device="meta")  # models ask for its dtype
        self._panels = panels or pack(weight, form)
        self._bias = None if bias is None else torch.nn.functional.pad(bias.detach().float(), (0, -len(bias) % PANEL))
        self._team = team or default_team()
        self._counts = np.zeros(2 * COUNTS_BYTES // 8, np.int64)
        self._record = np.zeros(1, LINEAR)
        self._record["weight"] = self._panels.address
        self._record["bias"] = 0 if self._bias is None else self._bias.data_ptr()
        self._record["depth"], self._record["columns"] = self._panels.depth, self._panels.columns
        self._record["counts"] = self._counts.ctypes.data
        self._words = self._record.view(np.int64)
        self._address = self._record.ctypes.data
        self._record["multiply"], self._record["round_rows"] = addresses(self._panels.form)
        self._kernel = linear.address
        self._rounded_bytes = rounded_bytes(1, self._panels.depth)

    @property
    def panels(self) -> Panels:
        return self._panels

    @property
    def bias(self) -> torch.Tensor | None:  # [N]
        return None if self._bias is None else self._bias[: self.shape[0]]

    @property
    def weight_bytes(self) -> int:
        return self._panels.data.nbytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., K] -> [..., N]
        panels, words = self._panels, self._words
        if x.shape[-1] != self.shape[1] or x.dtype != torch.float32:  # the kernel would go past its ends
            raise ValueError(f"a product of {self.shape[1]} float32 numbers was given {x.shape[-1]} of {x.dtype}")
        x = x.contiguous() if panels.depth == self.shape[1] else self._padded(x)
        out = x.new_empty(*x.shape[:-1], panels.columns)
        rows = x.numel() // panels.depth
        words[0], words[3], words[4] = x.data_ptr(), out.data_ptr(), rows
        if panels.form.rounds_rows:
            rounded = x.new_empty(rows * self._rounded_bytes, dtype=torch.uint8)
            words[8] = rounded.data_ptr()
        self._counts.fill(0)
        self._team.run(self._kernel, self._address)
        return out if out.shape[-1] == self.shape[0] else out[..., : self.shape[0]].contiguous()

    def _padded(self, x: torch.Tensor) -> torch.Tensor:  # [..., K] -> [..., K up to a multiple of LANES]
        return torch.nn.functional.pad(x, (0, self._panels.depth - self.shape[1]))

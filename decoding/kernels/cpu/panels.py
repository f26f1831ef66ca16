"""Weights in the layout of the products, and a linear over them. The unpacked weight is not kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from decoding.kernels.cpu.arena import shared_arena
from decoding.kernels.cpu.products import LIMIT_BYTES, LINEAR, addresses, linear
from decoding.kernels.cpu.rounding import GROUP, LARGEST_INPUT, input_limit, round_groups, round_weight
from decoding.kernels.cpu.sharing import COUNTS_BYTES
from decoding.kernels.cpu.team import Team, default_team
from decoding.kernels.cpu.tile import PANEL, VECTORS, Format
from decoding.kernels.cpu.vectors import LANES


@dataclass(frozen=True, slots=True)
class Panels:
    """The bytes of a weight [columns, depth] as [columns / PANEL, depth, PANEL], columns and depth with padding."""

    data: torch.Tensor
    form: Format
    columns: int
    depth: int

    @property
    def address(self) -> int:
        """Of the first panel."""
        return self.data.data_ptr() + (LIMIT_BYTES if self.form.rounds_rows else 0)


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
    return {Format.BFLOAT16_PAIRS: PANEL, Format.INT8: PANEL, Format.INT4: GROUP}.get(form, 1) if form else 1


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


def _pack_pairs(weight: torch.Tensor) -> torch.Tensor:  # [columns, depth] -> bytes
    """[columns / PANEL, depth / 2, PANEL, 2] bfloat16, behind a limit that none of its inputs has."""
    pairs = weight.bfloat16().contiguous().view(torch.int32).view(-1, PANEL, weight.shape[1] // 2).transpose(1, 2)
    return torch.cat([_limit(0).view(torch.uint8), pairs.contiguous().flatten().view(torch.uint8)])


def _pack_int8(weight: torch.Tensor) -> torch.Tensor:  # [columns, depth] -> bytes
    """The limit of its inputs, [columns / PANEL, depth / 2, PANEL, 2], the scales."""
    whole, scales = round_weight(weight)
    pairs = whole.to(torch.int8).contiguous().view(torch.int16).view(-1, PANEL, weight.shape[1] // 2).transpose(1, 2)
    parts = (_limit(input_limit(whole)), pairs.contiguous(), scales)
    return torch.cat([part.flatten().view(torch.uint8) for part in parts])


def _pack_int4(weight: torch.Tensor) -> torch.Tensor:  # [columns, depth] -> bytes
    """The limit of its inputs, then for each panel and group: words of eight k [4, PANEL], scales, least weights."""
    groups = round_groups(weight)
    shifts = torch.tensor([0, 16, 4, 20, 8, 24, 12, 28])  # of the k in a word; int64, for the last reach bit 31
    words = (groups.whole.long().view(len(weight), -1, GROUP // 8, 8) << shifts).sum(3)  # [columns, groups, 4]
    parts = [
        part.view(-1, PANEL, *part.shape[1:]).permute(0, 2, 3, 1).contiguous().view(torch.uint8)  # [panels, groups, …]
        for part in (words.to(torch.uint32).view(torch.int32), groups.scales, groups.leasts)
    ]
    packed = torch.cat([part.flatten(2) for part in parts], 2)
    return torch.cat([_limit(LARGEST_INPUT).view(torch.uint8), packed.flatten()])


def _limit(number: int) -> torch.Tensor:
    head = torch.zeros(LIMIT_BYTES // 4)
    head[0] = number
    return head


def rounded_bytes(rows: int, depth: int) -> int:
    """Of rows as int16 in the larger form, with the sum of each group, and their scales."""
    return rows * (2 * depth + 4 * (depth // GROUP) + 4)


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
            rounded = x.new_empty(rounded_bytes(rows, panels.depth), dtype=torch.uint8)
            words[8] = rounded.data_ptr()
        self._counts.fill(0)
        self._team.run(self._kernel, self._address)
        return out if out.shape[-1] == self.shape[0] else out[..., : self.shape[0]].contiguous()

    def _padded(self, x: torch.Tensor) -> torch.Tensor:  # [..., K] -> [..., K up to a multiple of LANES]
        return torch.nn.functional.pad(x, (0, self._panels.depth - self.shape[1]))

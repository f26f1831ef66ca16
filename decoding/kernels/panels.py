"""Weights in the layout of the products, and a linear over them. The unpacked weight is not kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from decoding.kernels.products import LINEAR, linears
from decoding.kernels.sharing import COUNTS_BYTES
from decoding.kernels.team import Team, default_team
from decoding.kernels.tile import PANEL, Format
from decoding.kernels.vectors import LANES


@dataclass(frozen=True, slots=True)
class Panels:
    """A weight [columns, depth] as [columns / PANEL, depth, PANEL], columns padded with zeros."""

    data: torch.Tensor
    form: Format
    columns: int
    depth: int

    @property
    def address(self) -> int:
        return self.data.data_ptr()


def fits_bfloat16(weight: torch.Tensor) -> bool:
    """Whether bfloat16 holds every number of a float32 weight exactly, as it does where the checkpoint was bfloat16."""
    return torch.equal(weight.bfloat16().float(), weight)


def pack(weight: torch.Tensor, form: Format | None = None) -> Panels:  # [columns, depth] float32
    """In the given form, else in the smallest that loses nothing."""
    form = form or (Format.BFLOAT16 if fits_bfloat16(weight) else Format.FLOAT32)
    columns, depth = weight.shape
    padded = torch.nn.functional.pad(weight.detach(), (0, 0, 0, -columns % PANEL))
    panels = padded.view(-1, PANEL, depth).transpose(1, 2)  # [panels, depth, PANEL]
    if form is Format.BFLOAT16:
        halves = panels.bfloat16().view(len(panels), depth, 2, LANES).transpose(2, 3)
        return Panels(halves.contiguous(), form, len(padded), depth)
    return Panels(panels.contiguous(), form, len(padded), depth)


class PanelLinear(torch.nn.Module):
    """x W^T + b in float32."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, team: Team | None = None
    ) -> None:  # [N, K], [N]
        super().__init__()
        self.shape = (weight.shape[0], weight.shape[1])
        self._panels = pack(weight)
        self._bias = None if bias is None else torch.nn.functional.pad(bias.detach(), (0, -len(bias) % PANEL))
        self._team = team or default_team()
        self._counts = np.zeros(COUNTS_BYTES // 8, np.int64)
        self._record = np.zeros(1, LINEAR)
        self._record["weight"] = self._panels.address
        self._record["bias"] = 0 if self._bias is None else self._bias.data_ptr()
        self._record["depth"], self._record["columns"] = self._panels.depth, self._panels.columns
        self._record["counts"] = self._counts.ctypes.data
        self._words = self._record.view(np.int64)
        self._address = self._record.ctypes.data
        self._kernel = linears[self._panels.form].address

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., K] -> [..., N]
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], self._panels.columns)
        words = self._words
        words[0], words[3], words[4] = x.data_ptr(), out.data_ptr(), x.numel() // self._panels.depth
        self._counts.fill(0)
        self._team.run(self._kernel, self._address)
        return out if out.shape[-1] == self.shape[0] else out[..., : self.shape[0]].contiguous()

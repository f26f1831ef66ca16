"""All kernels there are."""

from __future__ import annotations

from decoding.kernels.cpu.attend import attention
from decoding.kernels.cpu.layer import stacks
from decoding.kernels.cpu.products import linears
from decoding.kernels.cpu.team import help_out, lead
from decoding.kernels.cpu.topk import topk

KERNELS = (lead, help_out, attention, topk, *linears.values(), *stacks.values())


def compile_all() -> None:
    for each in KERNELS:
        assert each.address

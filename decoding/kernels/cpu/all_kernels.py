"""All kernels there are."""

from __future__ import annotations

from decoding.kernels.cpu.attend import attend, attention
from decoding.kernels.cpu.layer import run_stack
from decoding.kernels.cpu.products import linear, multiplies, roundings
from decoding.kernels.cpu.team import help_out, lead
from decoding.kernels.cpu.topk import topk

KERNELS = (lead, help_out, attend, attention, topk, linear, run_stack, *multiplies.values(), *roundings.values())


def compile_all() -> None:
    for each in KERNELS:
        assert each.address

"""The launches of a decoder layer's small steps (`kernels/gpu/layer.py`); under TRITON_INTERPRET=1 on the CPU, for
tests.

A product that takes eight bits is handed its rows with a scale for each; any other gets none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from decoding.attention.pages import Pages
from decoding.kernels.gpu import layer as kernels
from decoding.model.llama.parts import Norm

ACTIVATED_AT_ONCE = 1024

Rows = tuple[torch.Tensor, torch.Tensor | None]
"""[T, width], and where these are e4m3, float32 scales [T]."""
Angles = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, [1, T, rotary] each."""


@dataclass(frozen=True, slots=True)
class Placing:
    """Where a layer's queries, keys and values go. slots: int64 [T]"""

    pages: Pages
    layer: int
    slots: torch.Tensor
    head_norms: tuple[Norm, Norm] | None  # of queries, of keys


def normalised(x: torch.Tensor, norm: Norm, *, quantises: bool = False) -> Rows:  # [T, width]
    return _normalise(x, x, x, norm, quantises=quantises)


def added_and_normalised(
    x: torch.Tensor, delta: torch.Tensor, norm: Norm, *, quantises: bool = False
) -> tuple[torch.Tensor, Rows]:
    """x + delta [T, width], in memory of its own, and its norm."""
    total = torch.empty_like(x)
    return total, _normalise(x, delta, total, norm, quantises=quantises)


def _normalise(x: torch.Tensor, delta: torch.Tensor, total: torch.Tensor, norm: Norm, *, quantises: bool) -> Rows:
    tokens, width = x.shape
    out, scales = _room(x, width, quantises=quantises)
    kernels.normalise[(tokens,)](
        x, delta, norm.weight, total, out, out if scales is None else scales, norm.eps, width, power_of_two(width),
        total is not x, quantises, num_warps=warps(width), enable_fp_fusion=False,
    )  # fmt: skip
    return out, scales


def placed(qkv: torch.Tensor, placing: Placing, angles: Angles | None) -> torch.Tensor:
    """From [T, query | key | value] to queries [T, heads, dim]; keys and values are in their slots then."""
    pages, shape = placing.pages, placing.pages.shapes[placing.layer]
    query = qkv.new_empty(len(qkv), shape.heads, shape.head_dim)
    norms = placing.head_norms
    cos, sin = (qkv, qkv) if angles is None else (part[0].contiguous() for part in angles)
    kernels.place[(len(qkv), shape.heads + 2 * shape.kv_heads)](
        qkv, query, pages.keys[placing.layer], pages.values[placing.layer], placing.slots, cos, sin,
        norms[0].weight if norms else qkv, norms[1].weight if norms else qkv, norms[0].eps if norms else 0.0,
        shape.heads, shape.kv_heads, shape.head_dim, shape.v_head_dim, pages.page_size,
        0 if angles is None else cos.shape[-1], norms is not None,
        power_of_two(shape.head_dim), power_of_two(shape.v_head_dim), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return query


def activated(gate_up: torch.Tensor, *, quantises: bool = False) -> Rows:  # [T, 2 * width] -> [T, width]
    tokens, width = len(gate_up), gate_up.shape[1] // 2
    out, scales = _room(gate_up, width, quantises=quantises)
    if scales is not None:
        kernels.activate_quantised[(tokens,)](
            gate_up, out, scales, width, power_of_two(width), num_warps=warps(width), enable_fp_fusion=False
        )  # fmt: skip
    else:
        block = min(ACTIVATED_AT_ONCE, power_of_two(width))
        kernels.activate[(tokens, -(-width // block))](
            gate_up, out, width, block, num_warps=warps(block), enable_fp_fusion=False
        )
    return out, scales


def quantised(x: torch.Tensor) -> Rows:  # [T, width]
    """Rows as e4m3."""
    tokens, width = x.shape
    out, scales = _room(x, width, quantises=True)
    kernels.quantise[(tokens,)](
        x, out, scales, width, power_of_two(width), num_warps=warps(width), enable_fp_fusion=False
    )
    return out, scales


def _room(like: torch.Tensor, width: int, *, quantises: bool) -> Rows:
    if not quantises:
        return like.new_empty(len(like), width), None
    return like.new_empty(len(like), width, dtype=torch.float8_e4m3fn), like.new_empty(len(like), dtype=torch.float32)


def warps(width: int) -> int:
    """Enough that a thread has few numbers in registers."""
    return min(16, max(1, power_of_two(width) // 512))


def power_of_two(number: int) -> int:
    """The next one."""
    return 1 << (number - 1).bit_length()

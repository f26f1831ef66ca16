"""A layer's small steps, interpreted on the CPU, against the same in plain torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from decoding.attention.pages import LayerShape, Pages
from decoding.model.gpu.steps import Placing, activated, added_and_normalised, normalised, placed
from decoding.model.llama.parts import Norm
from tests.decoding.rounding_error import EPS, of_sum

CPU = torch.device("cpu")
TOKENS = 5


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm_of(width: int, seed: int = 9) -> Norm:
    return Norm(1 + random(width, seed=seed) / 4, 1e-5)


def plain_norm(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)


@pytest.mark.parametrize("width", [48, 130])
def test_a_sum_is_kept_and_its_norm_is_handed_on(width: int) -> None:
    x, delta, norm = random(TOKENS, width), random(TOKENS, width, seed=1), norm_of(width)
    given = x.clone()
    total, (normed, scales) = added_and_normalised(x, delta, norm)
    assert scales is None
    assert torch.equal(total, x + delta)
    assert torch.equal(x, given), "what a layer received may be kept by others"
    close = {"rtol": of_sum(width) + 4 * EPS, "atol": 0.0}
    torch.testing.assert_close(normed, plain_norm(total, norm), **close)
    torch.testing.assert_close(normalised(x, norm)[0], plain_norm(x, norm), **close)


def test_a_norm_of_sixteen_bits_is_that_of_the_rounded_sum() -> None:
    x, delta, norm = random(TOKENS, 48).bfloat16(), random(TOKENS, 48, seed=1).bfloat16(), norm_of(48)
    total, (normed, _) = added_and_normalised(x, delta, norm)
    once = torch.finfo(torch.bfloat16).eps  # the interpreter cuts off where a GPU rounds to the nearest
    torch.testing.assert_close(total.float(), x.float() + delta.float(), rtol=once, atol=0)
    torch.testing.assert_close(normed.float(), plain_norm(total.float(), norm), rtol=once, atol=1e-6)


@pytest.mark.parametrize("width", [80, 1100])
def test_an_activation_is_silu_of_the_gate_times_up(width: int) -> None:
    gate_up = 4 * random(TOKENS, 2 * width)
    gate_up[0, 0] = -200.0  # whose exponential is beyond float32
    gate, up = gate_up.chunk(2, dim=1)
    torch.testing.assert_close(activated(gate_up)[0], F.silu(gate) * up, rtol=1e-5, atol=1e-6)


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[T, heads, dim], of which the first cos.shape[1] turn."""
    rotary = cos.shape[1]
    part, rest = x[..., :rotary], x[..., rotary:]
    half = torch.cat([-part[..., rotary // 2 :], part[..., : rotary // 2]], -1)
    return torch.cat([part * cos[:, None] + half * sin[:, None], rest], -1)


@pytest.mark.parametrize("rotary", [0, 8, 12])
@pytest.mark.parametrize("has_norms", [False, True])
def test_queries_are_turned_and_keys_and_values_are_in_their_slots(rotary: int, has_norms: bool) -> None:
    """All of a head, some of it, or nothing turns; values may be narrower than keys."""
    shape = LayerShape(heads=4, kv_heads=2, head_dim=12, v_head_dim=8)
    pages = Pages([shape, shape], 4, torch.float32, CPU)
    pages.allocate(6)
    slots = torch.tensor([21, 4, 5, 11, 20])
    qkv = random(TOKENS, 4 * 12 + 2 * 12 + 2 * 8)
    norms = (norm_of(12), norm_of(12, seed=3)) if has_norms else None
    angles = random(TOKENS, rotary, seed=5)
    given = (angles.cos()[None], angles.sin()[None]) if rotary else None
    query = placed(qkv, Placing(pages, 1, slots, norms), given)

    parts = qkv.split([48, 24, 16], 1)
    asked, key, value = parts[0].view(TOKENS, 4, 12), parts[1].view(TOKENS, 2, 12), parts[2].view(TOKENS, 2, 8)
    if norms:
        asked, key = plain_norm(asked, norms[0]), plain_norm(key, norms[1])
    if rotary:
        asked, key = turned(asked, angles.cos(), angles.sin()), turned(key, angles.cos(), angles.sin())
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(query, asked, **close)
    torch.testing.assert_close(pages.keys[1][slots // 4, :, slots % 4], key, **close)
    assert torch.equal(pages.values[1][slots // 4, :, slots % 4], value)
    assert pages.values[1].count_nonzero() == value.numel(), "nothing else was written"
    assert pages.keys[0].count_nonzero() == 0

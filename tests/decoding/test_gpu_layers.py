"""Layers in few launches, interpreted on the CPU: they give what transformers' give, or transformers' stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

pytest.importorskip("triton")

from decoding.attention.pages import LayerShape
from decoding.attention.triton import TritonAttention
from decoding.gpu_layers import LeanLayer, replace_layers
from decoding.layer_ops import triton as ops
from decoding.layer_ops.norm import Norm
from decoding.plug import NAME, PluggedAttention, register, trace
from decoding.rewrite import make_fast
from tests.decoding.layout import PageBook, Row
from tests.decoding.tiny import tiny

CPU = torch.device("cpu")
SMALL = {"num_hidden_layers": 2}


@torch.inference_mode()
def plugged_in(lm: PreTrainedModel) -> tuple[PluggedAttention, TritonAttention, tuple[LayerShape, ...]]:
    """As `wrap` does on a GPU."""
    register(lm)
    plugged, shapes = trace(lm)
    make_fast(lm)
    return plugged, TritonAttention(shapes, device=CPU, dtype=lm.dtype, block=16, span=32), shapes


@torch.inference_mode()
def states(lm: PreTrainedModel, plugged: PluggedAttention, attention: TritonAttention) -> torch.Tensor:
    """Hidden states of 21 tokens: a chunk, then one more beside another row, then the last."""
    attention.allocate(20)
    book, row, other = PageBook(20, 16), Row(list(range(3, 24))), Row([40, 41])
    found = []
    for spans in ([(row, 13)], [(other, 2), (row, 7)], [(row, 1)]):
        batch = book.batch(spans)
        ids, positions = (torch.from_numpy(part)[None] for part in (batch.token_ids, batch.positions))
        bound = plugged.bind(attention, attention.plan(batch))
        out = lm.base_model(input_ids=ids, position_ids=positions, use_cache=False, **{NAME: bound})
        found.append(out.last_hidden_state[0][-spans[-1][1] :])
    return torch.cat(found)


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2", "phi3", "smollm3"])
def test_lean_layers_give_what_transformers_give(name: str) -> None:
    options = SMALL | ({"no_rope_layers": [1, 0]} if name == "smollm3" else {})
    with torch.inference_mode():
        expected = tiny(name, **options).base_model(torch.arange(3, 24)[None], use_cache=False).last_hidden_state[0]
    lm = tiny(name, **options)
    plugged, attention, shapes = plugged_in(lm)
    with torch.inference_mode():
        assert replace_layers(lm.base_model.layers, plugged, attention, shapes) == 2
    assert all(isinstance(layer, LeanLayer) for layer in lm.base_model.layers)
    torch.testing.assert_close(states(lm, plugged, attention), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["gemma2", "granite", "gpt_oss"])
def test_layers_of_another_kind_stay(name: str) -> None:
    lm = tiny(name, **SMALL)
    plugged, attention, shapes = plugged_in(lm)
    with torch.inference_mode():
        assert replace_layers(lm.base_model.layers, plugged, attention, shapes) == 0


def test_layers_stay_where_kernels_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_both: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(ops, "silu_product", broken)
    lm = tiny("llama", num_hidden_layers=1)
    plugged, attention, shapes = plugged_in(lm)
    with torch.inference_mode(), pytest.warns(UserWarning, match="no such instruction"):
        assert replace_layers(lm.base_model.layers, plugged, attention, shapes) == 0


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def each(found: torch.Tensor, alone: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(found[:, at : at + 1], one) for at, one in enumerate(alone))


def test_a_rows_bits_depend_on_no_neighbour() -> None:
    x, y, both, by = rows(1, 3, 40), rows(1, 3, 40, seed=1), rows(1, 3, 2 * 1100), Norm(rows(40, seed=2), 1e-5)
    assert each(ops.norm(x, by), [ops.norm(x[:, at : at + 1], by) for at in range(3)])
    total, normed = ops.add_norm(x, y, by)
    alone = [ops.add_norm(x[:, at : at + 1], y[:, at : at + 1], by) for at in range(3)]
    assert each(total, [one for one, _ in alone])
    assert each(normed, [one for _, one in alone])
    assert each(ops.silu_product(both), [ops.silu_product(both[:, at : at + 1]) for at in range(3)])


def test_half_precision_rounds_where_transformers_does() -> None:
    """A sum before it is normed, a normed value before its weight, an activation before its product."""
    x, y, weight = rows(1, 5, 48).bfloat16(), rows(1, 5, 48, seed=1).bfloat16(), rows(48, seed=2).bfloat16()
    total, normed = ops.add_norm(x, y, Norm(weight, 1e-6))
    assert torch.equal(total, x + y)
    wide = total.float()
    rounded = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).bfloat16()
    torch.testing.assert_close(normed, weight * rounded, rtol=2**-7, atol=0)
    assert (normed != weight * rounded).float().mean() < 0.02  # but for sums in another order
    gate, up = rows(1, 5, 64, seed=3).bfloat16().chunk(2, -1)
    found = ops.silu_product(torch.cat([gate, up], -1))
    torch.testing.assert_close(found, torch.nn.functional.silu(gate) * up, rtol=2**-7, atol=0)


def test_only_query_and_key_heads_are_rotated() -> None:
    shape = LayerShape(heads=3, kv_heads=1, head_dim=8, v_head_dim=8)
    heads = rows(1, 2, 5 * 8)
    angle = torch.from_numpy(np.linspace(0, 1, 16, dtype=np.float32)).view(1, 2, 8)
    found = heads.clone()
    ops.rotate(found, shape, (angle.cos(), angle.sin()), None)
    a, b = heads.view(1, 2, 5, 8).chunk(2, -1)
    expected = torch.cat(
        [a * angle.cos()[..., None, :4] - b * angle.sin()[..., None, :4],
         b * angle.cos()[..., None, 4:] + a * angle.sin()[..., None, 4:]], -1
    )  # fmt: skip
    torch.testing.assert_close(found.view(1, 2, 5, 8)[:, :, :4], expected[:, :, :4])
    assert torch.equal(found[..., 32:], heads[..., 32:])

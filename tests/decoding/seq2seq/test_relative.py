"""Relative position bias: T5's buckets, and its sum with the scores over pages."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Attention

from decoding.attention.cpu import CPUAttention
from decoding.attention.interface import LayerSpec
from decoding.attention.pages import LayerShape
from decoding.attention.reference import ReferenceAttention
from decoding.model.seq2seq.relative import bidirectional_bias, causal_bias
from tests.decoding.conftest import one_thread
from tests.decoding.layout import PageBook, Row
from tests.decoding.rounding_error import of_attention

__all__ = ["one_thread"]

SHAPE = LayerShape(4, 4, 12, 12)
LENGTH = 90


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 12)])
def test_biases_by_distance_are_those_of_t5_s_attention(num_buckets: int, max_distance: int) -> None:
    config = T5Config(
        num_heads=4, relative_attention_num_buckets=num_buckets, relative_attention_max_distance=max_distance
    )
    at = torch.arange(300)
    for is_decoder in (True, False):
        config.is_decoder = is_decoder
        attention = T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
        weight = attention.relative_attention_bias.weight.detach()
        expected = attention.compute_bias(300, 300)[0]  # [heads, queries, keys]
        ahead = at - at[:, None]
        if is_decoder:
            found = causal_bias(weight, max_distance)[:, (-ahead).clamp(0, max_distance)]
        else:
            found = bidirectional_bias(weight, max_distance)[:, ahead.clamp(-max_distance, max_distance) + max_distance]
        assert torch.equal(found, expected)


def states() -> torch.Tensor:
    """Query, key and value of each row: [3, rows, heads, LENGTH, dim]."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 3, SHAPE.heads, LENGTH, SHAPE.head_dim, generator=generator)


def attended(attention: CPUAttention | ReferenceAttention, spec: LayerSpec, chunks: list[int]) -> torch.Tensor:
    """Three rows fed in chunks, beside each other: [LENGTH, rows, heads, dim]."""
    attention.allocate(40)
    book, rows = PageBook(40, attention.page_size), [Row([5] * LENGTH) for _ in range(3)]
    found = []
    for count in chunks:
        start = rows[0].fed
        plan = attention.plan(book.batch([(row, count) for row in rows]))
        parts = (
            states()[:, :, :, start : start + count].permute(0, 2, 1, 3, 4).flatten(2, 3)
        )  # [3, heads, rows * T, dim]
        out = attention.forward(spec, *(part[None] for part in parts), plan)  # type: ignore[arg-type]
        found.append(out[0].view(3, count, SHAPE.heads, SHAPE.head_dim).transpose(0, 1))
    return torch.cat(found)


def test_the_bias_is_added_over_pages_whatever_the_chunks() -> None:
    bias = torch.randn(SHAPE.heads, 21, generator=torch.Generator().manual_seed(2))
    spec = LayerSpec(0, 1.0, bias=bias)
    cpu = CPUAttention([SHAPE])
    reference = ReferenceAttention([SHAPE], device=torch.device("cpu"), dtype=torch.float32)
    whole = attended(cpu, spec, [LENGTH])
    error = 2 * of_attention(*states().flatten(1, 2), spec.scaling, bias=float(bias.abs().max()))  # of any row's heads
    assert whole == pytest.approx(attended(reference, spec, [LENGTH]), abs=error)
    assert not torch.allclose(whole, attended(cpu, LayerSpec(0, 1.0), [LENGTH]), atol=1e-2)
    assert torch.equal(whole, attended(cpu, spec, [64, 20, 1, 1, 4]))

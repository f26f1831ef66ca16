"""A GPU gets the Triton backend where it can be compiled, and the reference where not."""

from __future__ import annotations

import pytest
import torch

from decoding.attention.choice import default_attention, uniform_attention
from decoding.attention.pages import LayerShape
from decoding.attention.reference import ReferenceAttention

SHAPES = [LayerShape(heads=4, kv_heads=2, head_dim=16, v_head_dim=16)]
GPU = torch.device("cuda")


def test_a_gpu_gets_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("CC", "cc")
    made = default_attention(SHAPES, GPU, torch.bfloat16)
    assert made.is_capturable
    assert (made.page_size, made.bytes_per_page()) == (16, 2 * 2 * 16 * 16 * 2)


def test_without_a_compiler_it_gets_the_reference_and_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.warns(UserWarning, match="compiler"):
        assert type(default_attention(SHAPES, GPU, torch.bfloat16)) is ReferenceAttention
    with pytest.raises(RuntimeError, match="compiler"):
        uniform_attention(SHAPES, GPU, torch.bfloat16)

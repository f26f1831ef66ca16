"""A GPU gets the Triton backend where it can be compiled, and the reference where not."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from decoding.attention.choice import default_attention, uniform_attention
from decoding.attention.pages import LayerShape
from decoding.attention.reference import ReferenceAttention
from decoding.device import missing_for_triton

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


def test_a_cache_that_nothing_can_be_loaded_from_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker mounts a tmpfs noexec unless told otherwise: mapping its files as code is refused."""
    pytest.importorskip("triton")
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    assert missing_for_triton() is None
    own = mmap.mmap

    def refusing(*args: int, prot: int, flags: int) -> mmap.mmap:
        if prot & mmap.PROT_EXEC:
            raise PermissionError(1, "Operation not permitted")
        return own(*args, prot=prot, flags=flags)

    monkeypatch.setattr(mmap, "mmap", refusing)
    with pytest.warns(UserWarning, match="/tmp:exec"):
        assert type(default_attention(SHAPES, GPU, torch.bfloat16)) is ReferenceAttention
    with pytest.raises(RuntimeError, match=str(tmp_path)):
        uniform_attention(SHAPES, GPU, torch.bfloat16)


def test_layers_that_add_biases_get_our_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("CC", "cc")
    biased = LayerShape(heads=4, kv_heads=4, head_dim=16, v_head_dim=16, has_bias=True)
    assert default_attention([biased], GPU, torch.bfloat16).is_capturable

"""A model that adds biases by distance, over our GPU kernels as they are interpreted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from decoding.attention.interface import PagedAttention
from decoding.attention.pages import LayerShape
from decoding.model.loading import wrap
from tests.decoding.seq2seq.world import SPECS
from tests.goldens.seq2seq import build

pytest.importorskip("triton")


def test_t5_says_what_transformers_says() -> None:
    """`wrap` compares the logits of its own trial and refuses a model that differs."""
    from decoding.attention.triton import TritonAttention  # noqa: PLC0415 - triton may be absent

    def small(shapes: Sequence[LayerShape], device: torch.device, dtype: torch.dtype) -> PagedAttention:
        return TritonAttention(shapes, device=device, dtype=dtype, block=16)

    assert wrap(build(SPECS["t5"]), attention=small).encoder is not None

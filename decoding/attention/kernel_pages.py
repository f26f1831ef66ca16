"""Keys and values in the layouts that the compiled kernels read and write (`kernels/cpu/storage.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from decoding.attention.pages import LayerShape, Pages
from decoding.kernels.cpu.arena import lazy_zeros
from decoding.kernels.cpu.storage import PAGE, turns
from decoding.kernels.cpu.tile import PANEL, Format

FORMS = {torch.float32: Format.FLOAT32, torch.bfloat16: Format.BFLOAT16_PAIRS}


class KernelPages(Pages):
    """float32 keys [num_pages, kv_heads, head_dim, PAGE], values [num_pages, kv_heads, PAGE, v_width]; bfloat16 ones
    as pairs, [num_pages, kv_heads, head_dim / 2, PAGE, 2] and [num_pages, kv_heads, PAGE / 2, v_width, 2].
    """

    def __init__(self, shapes: Sequence[LayerShape], dtype: torch.dtype) -> None:
        super().__init__(shapes, PAGE, dtype, torch.device("cpu"))
        self.form = FORMS[dtype]

    def allocate(self, num_pages: int) -> None:
        each = [self._sizes(shape) for shape in self.shapes]
        self.keys, self.values = [], []  # gone before there are new ones
        self.keys, self.values = (
            [lazy_zeros(num_pages, *sizes[part], dtype=self.dtype) for sizes in each] for part in (0, 1)
        )

    def bytes_per_page(self) -> int:
        numbers = sum(int(np.prod(size)) for shape in self.shapes for size in self._sizes(shape))
        return numbers * self.dtype.itemsize

    def keys_of(self, layer: int, pages: np.ndarray) -> torch.Tensor:
        """float32 [kv_heads, head_dim, positions], those of whole pages."""
        found = self.keys[layer].index_select(0, torch.from_numpy(pages)).float()
        if self.form.depth > 1:
            found = found.transpose(3, 4).flatten(2, 3)
        return found.permute(1, 2, 0, 3).flatten(2)[:, : self.shapes[layer].head_dim]

    def _sizes(self, shape: LayerShape) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of one page's keys and values."""
        depth, width = self.form.depth, padded(shape.v_head_dim)
        pairs = (depth,) if depth > 1 else ()
        return (shape.kv_heads, turns(shape.head_dim, self.form), PAGE, *pairs), (
            shape.kv_heads,
            PAGE // depth,
            width,
            *pairs,
        )


def padded(width: int) -> int:
    return width + -width % PANEL

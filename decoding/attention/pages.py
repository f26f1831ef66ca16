"""The KV tensors of a model: pages of keys and values for every layer.

Owns the memory and its layout, [num_pages, kv_heads, page_size, head_dim]; does not know which page belongs to whom
(`cache.py`) nor how pages are attended to (the backends).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from decoding.device import to_device


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one layer's attention works on."""

    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    has_bias: bool = False  # the layer adds biases by distance

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.heads // self.kv_heads


LAYERS_AT_ONCE = 16
"""Keys or values of so many layers are copied in one launch; between reading and writing they are in memory twice."""


class Pages:
    """Keys and values of every layer. Stored in one dtype, whatever the model's. Those of one shape lie together."""

    def __init__(self, shapes: Sequence[LayerShape], page_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shapes = tuple(shapes)
        self.page_size = page_size
        self.dtype = dtype
        self.device = device
        self.keys: list[torch.Tensor] = []  # per layer [num_pages, kv_heads, page_size, head_dim]
        self.values: list[torch.Tensor] = []  # per layer [num_pages, kv_heads, page_size, v_head_dim]
        self.stacks: list[torch.Tensor] = []  # all of them, [count, num_pages, kv_heads, page_size, dim] each

    def allocate(self, num_pages: int) -> None:
        self.keys, self.values, self.stacks = [], [], []  # gone before there are new ones
        sizes = [(s.kv_heads, dim) for s in self.shapes for dim in (s.head_dim, s.v_head_dim)]
        of_size = {}
        for (kv_heads, dim), count in Counter(sizes).items():
            room = (count, num_pages, kv_heads, self.page_size, dim)
            self.stacks.append(torch.zeros(room, dtype=self.dtype, device=self.device))
            of_size[kv_heads, dim] = iter(self.stacks[-1].unbind())
        each = [next(of_size[size]) for size in sizes]
        self.keys, self.values = each[::2], each[1::2]

    def bytes_per_page(self) -> int:
        numbers = sum(shape.kv_heads * (shape.head_dim + shape.v_head_dim) for shape in self.shapes)
        return numbers * self.page_size * self.dtype.itemsize

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole pages, (source, destination), all layers; every source is read before any page is written."""
        if self.device.type == "cpu":
            copy_pages((*self.keys, *self.values), pairs)
        else:
            copy_stacked(self.stacks, pairs)

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor, writes: Writes) -> None:
        """Put key [1, kv_heads, T, head_dim] and value [1, kv_heads, T, v_head_dim] into their slots."""
        rows = writes.rows(self.shapes[layer].kv_heads)
        for pages, new in ((self.keys[layer], key), (self.values[layer], value)):
            if writes.fresh is not None:
                pages.index_fill_(0, writes.fresh, 0)
            flat = pages.view(-1, new.shape[-1])
            flat.index_copy_(0, rows, new.transpose(1, 2).reshape(-1, new.shape[-1]).to(self.dtype))


def copy_pages(tensors: Sequence[torch.Tensor], pairs: Sequence[tuple[int, int]]) -> None:
    """Copy (source, destination) along the first dimension of each, on the CPU; every source is read before any is
    written."""
    if not pairs:
        return
    sources, destinations = np.asarray(pairs, dtype=np.int64).T
    for pages in tensors:
        # 30 pages of 60 tensors: 8 ms, where torch's index_copy_ takes 26, mostly to call its threads
        flat = pages.view(len(pages), -1).view(torch.uint8).numpy()
        flat[destinations] = flat[sources]


def copy_stacked(stacks: Sequence[torch.Tensor], pairs: Sequence[tuple[int, int]]) -> None:
    """The same along the second dimension, in few launches: a GPU copies pages faster than a host can say which."""
    if not pairs:
        return
    sources, destinations = to_device(np.asarray(pairs, dtype=np.int64), stacks[0].device).unbind(1)
    for stack in stacks:
        for layers in torch.split(stack, LAYERS_AT_ONCE):
            layers.index_copy_(1, destinations, layers.index_select(1, sources))


class Writes:
    """Where one forward's keys and values go, computed once and used by every layer."""

    def __init__(self, slots: np.ndarray, page_size: int, device: torch.device) -> None:  # int64 [T]
        self._slots = to_device(slots, device)
        self._page_size = page_size
        self._rows: dict[int, torch.Tensor] = {}
        # A page begun anew may hold a former owner's leftovers. They are masked, but 0 * NaN is NaN: wipe them.
        fresh = np.unique(slots[slots % page_size == 0]) // page_size
        self.fresh = to_device(fresh, device) if len(fresh) else None  # [pages]

    def rows(self, kv_heads: int) -> torch.Tensor:
        """Row numbers in the layer's pages seen as [num_pages * kv_heads * page_size, dim]: [T * kv_heads]."""
        if kv_heads not in self._rows:
            pages, offsets = self._slots // self._page_size, self._slots % self._page_size
            heads = torch.arange(kv_heads, device=self._slots.device)
            rows = (pages[:, None] * kv_heads + heads) * self._page_size + offsets[:, None]
            self._rows[kv_heads] = rows.reshape(-1)
        return self._rows[kv_heads]

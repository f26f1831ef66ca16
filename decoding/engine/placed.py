"""A model as the engine holds it: the network, and the cache whose pages its rows' keys and values lie in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from decoding.attention.interface import Batch
from decoding.engine.cache import PageCache
from decoding.engine.reading import Head, HiddenStates


class Pages(Protocol):
    """What the engine needs of an attention backend."""

    @property
    def page_size(self) -> int: ...

    def copy_pages(self, pairs: list[tuple[int, int]]) -> None: ...


class Encoder(Protocol):
    """The other half of a model that has one."""

    @property
    def max_source_len(self) -> int: ...

    def encode(self, sources: Batch) -> None:
        """Run whole sources, and write what the decoder's rows will read of them into their slots."""


class Model(Head, Protocol):
    """What the engine needs of a model; `model/model.py` and the tests' table-driven model both are one."""

    @property
    def attention(self) -> Pages: ...

    @property
    def encoder(self) -> Encoder | None:
        """Where there is one, every request to the model brings a source."""

    def forward(self, batch: Batch, layers: tuple[int, ...] = ()) -> HiddenStates: ...


@dataclass(frozen=True, slots=True)
class Placed:
    """The cache knows who owns which page; the model's attention holds what is in them."""

    model: Model
    cache: PageCache

"""The package's table model, and an engine over it."""

from __future__ import annotations

from decoding.check.table_model import (
    HIDDEN,
    DraftTableModel,
    TableAttention,
    TableHidden,
    TableModel,
    states,
    states_of,
    table_token_bytes,
)
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from tests.decoding.engines import make_engine

__all__ = [
    "HIDDEN",
    "TableAttention",
    "TableHidden",
    "TableModel",
    "crowd_engine",
    "states",
    "states_of",
    "table_engine",
]


def table_engine(
    *,
    num_pages: int = 64,
    page_size: int = 4,
    models: dict[str, TableModel] | None = None,
    eos: tuple[int, ...] = (),
    **options: object,
) -> Engine:
    """An engine over table models; the model named "main" unless given."""
    models = models or {"main": TableModel(page_size=page_size, num_pages=num_pages)}
    caches = {n: PageCache(m.attention.num_pages, m.attention.page_size) for n, m in models.items()}
    return make_engine(models, caches, eos_token_ids=eos, **options)  # type: ignore[arg-type]


def crowd_engine(num_pages: int, vocab: int, *, max_rows: int = 24, **options: object) -> Engine:
    """With a draft model and small ticks: for the crowd's random requests of every strategy."""
    models = {"main": TableModel(vocab=vocab, num_pages=num_pages), "draft": DraftTableModel(num_pages=num_pages)}
    token_bytes = table_token_bytes(vocab)
    return table_engine(models=models, eos=(3,), token_bytes=token_bytes, max_rows=max_rows, tick_tokens=48, **options)

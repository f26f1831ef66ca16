"""The engines that a plugin is tried on: over a model that is a table, or over a real one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from decoding.check.table_model import DraftTableModel, TableModel, table_token_bytes
from decoding.contract.params import DRAFT, MAIN
from decoding.contract.plugin_samples import Vocabulary
from decoding.engine import vocabulary
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.engine.limits import Limits
from decoding.engine.placed import Model, Placed

MANY_PAGES = 600
TABLE_IDS = 40


@dataclass(frozen=True, slots=True)
class Size:
    """num_pages: of each model's cache. tick_tokens: of prompts in a tick."""

    num_pages: int = MANY_PAGES
    tick_tokens: int = 512
    max_rows: int = 64


class Bench(Protocol):
    @property
    def vocabulary(self) -> Vocabulary: ...

    def engine(self, size: Size) -> Engine:
        """A fresh one, with an empty cache."""


class TableBench:
    """Its next-token scores are a hash of all that the cache says came before: what is wrong there shows at once."""

    vocabulary = Vocabulary(TABLE_IDS, table_token_bytes(TABLE_IDS))

    def engine(self, size: Size) -> Engine:
        models = {
            MAIN: TableModel(vocab=TABLE_IDS, num_pages=size.num_pages),
            DRAFT: DraftTableModel(vocab=TABLE_IDS, num_pages=size.num_pages),
        }
        return make_engine(models, 4, (3,), self.vocabulary.token_bytes, size)


class ModelBench:
    """The model of a directory, in float32. ending_ids: the token ids that end its texts."""

    def __init__(self, directory: str) -> None:
        from decoding.model.loading import load  # noqa: PLC0415 - imports transformers, for seconds

        self._model = load(directory, device="auto", dtype="float32", is_batch_invariant=True)
        info = self._model.info
        self._ending_ids = info.eos_token_ids
        self.vocabulary = Vocabulary(info.vocab_size, _token_bytes(directory, info.vocab_size))

    def engine(self, size: Size) -> Engine:
        self._model.attention.allocate(size.num_pages)
        page_size = self._model.attention.page_size
        return make_engine({MAIN: self._model}, page_size, self._ending_ids, self.vocabulary.token_bytes, size)


def make_engine(
    models: Mapping[str, Model], page_size: int, ending_ids: Sequence[int], token_bytes: Sequence[bytes], size: Size
) -> Engine:
    placed = {name: Placed(model, PageCache(size.num_pages, page_size)) for name, model in models.items()}
    known = vocabulary.Vocabulary(ending_ids, token_bytes)
    limits = Limits(max_rows=size.max_rows, tick_tokens=size.tick_tokens)
    return Engine(placed, known, limits, clock=lambda: 0.0)


def _token_bytes(directory: str, count: int) -> list[bytes]:
    """Nearly what the server finds out: of a token by itself."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    known = min(count, len(tokenizer))
    return [str(tokenizer.decode([i])).encode() for i in range(known)]

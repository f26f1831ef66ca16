"""How the memory becomes pages, alone and beside a draft model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from decoding.attention.interface import Batch
from decoding.contract.frames import Start
from decoding.contract.params import DRAFT, MAIN
from decoding.model.graphs import GRAPH_BYTES
from decoding.model.loading import wrap
from decoding.model.model import Hidden, Model
from decoding.worker.assembly import (
    GPU_CANARY_TOKENS,
    Sizes,
    _default_kv_memory,
    _peak_bytes,
    build_engine,
    canaries,
    launches_ahead,
    size_caches,
)
from decoding.worker.largest_tick import LEAST_BYTES
from tests.decoding.tiny import tiny


@pytest.fixture(scope="module")
def model() -> Model:
    return wrap(tiny("llama"))


@pytest.fixture(scope="module")
def draft() -> Model:
    return wrap(tiny("llama", num_hidden_layers=1, max_position_embeddings=128))


def start(kv_memory_bytes: int, **sizes: Any) -> Start:
    return Start("", kv_memory_bytes=kv_memory_bytes, **sizes)


def test_one_model_takes_all_the_memory(model: Model) -> None:
    memory = 100 * model.attention.bytes_per_page() + 1
    assert size_caches(start(memory), {MAIN: model}).num_pages == {MAIN: 100}


def test_two_models_hold_equally_many_tokens_in_the_same_memory(model: Model, draft: Model) -> None:
    memory = 100 * model.attention.bytes_per_page()
    sizes = size_caches(start(memory), {MAIN: model, DRAFT: draft})
    assert sizes.num_pages[MAIN] == sizes.num_pages[DRAFT] == 75  # three layers and one
    used = sum(sizes.num_pages[n] * m.attention.bytes_per_page() for n, m in ((MAIN, model), (DRAFT, draft)))
    assert used <= memory


def test_the_shorter_model_and_the_memory_limit_the_length(model: Model, draft: Model) -> None:
    models = {MAIN: model, DRAFT: draft}
    assert size_caches(start(1 << 30), models).max_model_len == 128
    assert size_caches(start(1 << 30, max_model_len=50), models).max_model_len == 50
    page = sum(m.attention.bytes_per_page() for m in models.values())
    assert size_caches(start(3 * page), models).max_model_len == 2 * model.attention.page_size


def test_no_page_beyond_what_all_rows_could_use_is_taken(draft: Model) -> None:
    most = 1 + 2 * -(-128 // draft.attention.page_size)
    assert size_caches(start(1 << 40, max_rows=2), {MAIN: draft}).num_pages == {MAIN: most}


def test_memory_for_no_page_is_refused(model: Model, draft: Model) -> None:
    with pytest.raises(ValueError, match="too small"):
        size_caches(start(model.attention.bytes_per_page() * 2), {MAIN: model, DRAFT: draft})


def test_a_loaded_model_says_what_it_is(model: Model) -> None:
    _, loaded = build_engine(start(1 << 20), model)
    assert (loaded.num_layers, loaded.ties_embeddings, loaded.beside) == (3, False, ())
    _, tied = build_engine(start(1 << 20), wrap(tiny("llama", tie_word_embeddings=True)))
    assert tied.ties_embeddings


def test_a_draft_model_that_fails_its_canary_is_not_served(draft: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = wrap(tiny("llama", num_hidden_layers=1))
    monkeypatch.setattr(broken, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("no")))
    with pytest.raises(RuntimeError):
        build_engine(start(1 << 20), draft, {DRAFT: broken})


@pytest.mark.parametrize(
    ("switch", "on_cpu", "on_cuda"), [("auto", False, True), ("on", True, True), ("off", False, False)]
)
def test_forwards_are_launched_ahead_where_it_gains_or_is_asked_for(
    switch: Literal["auto", "on", "off"], on_cpu: bool, on_cuda: bool
) -> None:
    frame = Start("", launch_ahead=switch)
    assert launches_ahead(frame, torch.device("cpu")) is on_cpu
    assert launches_ahead(frame, torch.device("cuda")) is on_cuda


class Gpu:
    """torch.cuda's memory, as far as sizes go by it."""

    def __init__(self, free: int, cached: int, peak: int) -> None:
        self.free, self.cached, self.peak = free, cached, peak

    def empty_cache(self) -> None:
        self.free, self.cached = self.free + self.cached, 0

    def mem_get_info(self, _device: torch.device) -> tuple[int, int]:
        return self.free, 80 << 30

    def memory_allocated(self, _device: torch.device) -> int:
        return 1 << 30

    def reset_peak_memory_stats(self, _device: torch.device) -> None: ...

    def max_memory_allocated(self, device: torch.device) -> int:
        return self.memory_allocated(device) + self.peak


class Tried:
    """A model that thinks itself on a GPU, and notes the tokens and rows of its forwards and what it was to record."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.info = replace(model.info, device=torch.device("cuda"))
        self.encoder = None
        self.attention, self.head, self.project = model.attention, model.head, model.project
        self.forwards: list[tuple[int, int]] = []
        self.recorded: list[tuple[int, ...]] = []
        self.plain: list[int] = []

    def forward(self, batch: Batch, layers: tuple[int, ...] = (), *, shift: int = 0) -> Hidden:
        self.forwards.append((batch.num_tokens, batch.num_rows))
        self.plain += [batch.num_tokens] if shift else []
        return self._model.forward(batch, layers)

    def record(self, most_rows: int, most_positions: int, leaves_bytes: int) -> None:
        self.recorded.append((most_rows, most_positions, leaves_bytes, len(self.forwards)))

    def recordings(self, _most_rows: int, _most_positions: int) -> list[tuple[int, int]]:
        return [(1, 16)] * 10


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """60 GB are free, and 40 more that merged weights left with torch."""
    fake = Gpu(60 << 30, 40 << 30, 4 << 30)
    for name in ("empty_cache", "mem_get_info", "memory_allocated", "reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake


def test_a_gpus_caches_get_what_the_largest_tick_and_its_recordings_leave(gpu: Gpu, model: Model) -> None:
    tried: Any = Tried(model)
    asked = start(0, max_rows=6, tick_tokens=90)
    peak = _peak_bytes(asked, tried)
    assert peak == gpu.peak
    assert tried.forwards == [(90, 6)], "all the tokens and all the rows there may be, at once"
    assert _default_kv_memory(asked, {MAIN: tried}, peak) == (100 << 30) - (4 << 30) * 9 // 8 - 10 * GRAPH_BYTES
    assert _default_kv_memory(asked, {MAIN: tried, DRAFT: tried}, 1 << 20) == (100 << 30) - LEAST_BYTES
    gpu.free = 1 << 30
    assert _default_kv_memory(asked, {MAIN: tried}, peak) == 0


@pytest.mark.parametrize(("max_rows", "tick_tokens"), [(1, 1000), (30, 10), (300, 8192)])
def test_the_largest_tick_runs_whatever_its_bounds(max_rows: int, tick_tokens: int, gpu: Gpu, model: Model) -> None:
    tried: Any = Tried(model)
    _peak_bytes(start(0, max_rows=max_rows, tick_tokens=tick_tokens), tried)
    tokens, rows = tried.forwards[0]
    assert rows == max_rows
    assert tokens == max_rows * max(1, min(tick_tokens // max_rows, model.info.max_model_len - 1))


def test_forwards_are_recorded_over_the_pages_that_will_serve_and_before_the_canary(
    gpu: Gpu, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lacks memory then is found out before anybody asks; and what is not recorded is compiled, too."""
    tried: Any = Tried(model)
    compiled: list[int] = []
    monkeypatch.setattr("decoding.worker.assembly.compile_topk", lambda vocab, _device: compiled.append(vocab))
    _, loaded = build_engine(start(0, max_rows=6, tick_tokens=90), tried)
    assert tried.recorded == [(6, loaded.max_model_len, gpu.peak, 1)]
    assert len(tried.forwards) > 1
    assert tried.plain == [3, loaded.max_model_len - 2]
    assert compiled == [model.info.vocab_size]
    assert len(model.attention.pages.keys[0]) == loaded.num_pages


def test_a_gpu_decodes_what_splits_attention_before_it_serves(model: Model) -> None:
    on_gpu: Any = SimpleNamespace(
        info=replace(model.info, device=torch.device("cuda")), attention=SimpleNamespace(page_size=16), encoder=None
    )
    assert [len(prompt) for prompt in canaries(on_gpu, Sizes(4096, {MAIN: 100}))] == [3, GPU_CANARY_TOKENS]
    assert [len(prompt) for prompt in canaries(on_gpu, Sizes(4096, {MAIN: 5}))] == [3, 62]
    assert [len(prompt) for prompt in canaries(on_gpu, Sizes(4, {MAIN: 5}))] == [3]
    assert max(canaries(on_gpu, Sizes(4096, {MAIN: 100}))[1]) < model.info.vocab_size
    assert [len(prompt) for prompt in canaries(model, Sizes(4096, {MAIN: 100}))] == [3]
    on_gpu.encoder = object()
    assert [len(prompt) for prompt in canaries(on_gpu, Sizes(4096, {MAIN: 100}, 4096))] == [3, GPU_CANARY_TOKENS]


def test_a_text_ends_at_the_tokenizers_end_too_and_at_no_id_beyond_the_logits(model: Model) -> None:
    width = model.info.vocab_size
    names = ((width - 1, "<end>"), (width, "<pad>"))
    own = {"eos_token_ids": (width - 1, width), "special_tokens": names, "token_bytes": (b"x",) * width}
    begun = start(1 << 20, **own)
    engine, loaded = build_engine(begun, model)
    assert loaded.eos_token_ids == (*model.info.eos_token_ids, width - 1)
    assert engine._vocabulary.special_tokens == ((width - 1, "<end>"),)

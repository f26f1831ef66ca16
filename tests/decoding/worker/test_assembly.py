"""How the memory becomes pages, alone and beside a draft model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch

from decoding.contract.frames import Start
from decoding.contract.params import DRAFT, MAIN
from decoding.model.loading import wrap
from decoding.model.model import Model
from decoding.worker.assembly import (
    GPU_CANARY_TOKENS,
    Sizes,
    _default_kv_memory,
    build_engine,
    canaries,
    launches_ahead,
    size_caches,
)
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


def test_memory_that_torch_holds_without_using_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged weights leave their parts' memory behind, gigabytes of it."""
    free = [60]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(free.pop() + 40))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free[0], 200))
    assert _default_kv_memory(torch.device("cuda")) == 90


def test_a_gpu_decodes_what_splits_attention_before_it_serves(model: Model) -> None:
    on_gpu: Any = SimpleNamespace(
        info=replace(model.info, device=torch.device("cuda")), attention=SimpleNamespace(page_size=16), encoder=None
    )
    assert [len(prompt) for prompt in canaries(on_gpu, Sizes(4096, {MAIN: 100}))] == [3, GPU_CANARY_TOKENS]
    assert [len(prompt) for prompt in canaries(on_gpu, Sizes(4096, {MAIN: 5}))] == [3, 62]
    assert [len(prompt) for prompt in canaries(on_gpu, Sizes(4, {MAIN: 5}))] == [3]
    assert max(canaries(on_gpu, Sizes(4096, {MAIN: 100}))[1]) < model.info.vocab_size
    assert [len(prompt) for prompt in canaries(model, Sizes(4096, {MAIN: 100}))] == [3]


def test_a_text_ends_at_the_tokenizers_end_too_and_at_no_id_beyond_the_logits(model: Model) -> None:
    width = model.info.vocab_size
    names = ((width - 1, "<end>"), (width, "<pad>"))
    own = {"eos_token_ids": (width - 1, width), "special_tokens": names, "token_bytes": (b"x",) * width}
    begun = start(1 << 20, **own)
    engine, loaded = build_engine(begun, model)
    assert loaded.eos_token_ids == (*model.info.eos_token_ids, width - 1)
    assert engine._vocabulary.special_tokens == ((width - 1, "<end>"),)

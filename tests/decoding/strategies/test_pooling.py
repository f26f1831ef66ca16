"""Embeddings of tiny models are those that transformers' own hidden states give."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch

from decoding.contract.params import PoolBy, Pooling, Request, StoppingParams
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.model.loading import wrap
from decoding.model.model import Model
from decoding.strategies import pooling
from tests.decoding.crowd import DraftTableModel
from tests.decoding.drive import run
from tests.decoding.engines import make_engine
from tests.decoding.rounding_error import of_model
from tests.decoding.strategies.branching import sampling_requests
from tests.decoding.table_model import TableModel, table_engine
from tests.decoding.tiny import VOCAB, tiny

PROMPTS = [(7,), (3, 1, 4, 1, 5, 9, 2, 6), tuple(random.Random(3).randrange(VOCAB) for _ in range(150))]


def engine(model: Model, *, tick_tokens: int = 512) -> Engine:
    model.attention.allocate(100)
    caches = {"main": PageCache(100, model.attention.page_size)}
    return make_engine({"main": model}, caches, eos_token_ids=(2,), tick_tokens=tick_tokens)


def pooled(model: Any, prompt: tuple[int, ...], pool_by: PoolBy) -> torch.Tensor:
    with torch.no_grad():
        states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0]  # [T, hidden]
    made: torch.Tensor = states.mean(0) if pool_by == "mean" else states[-1]
    return made / made.norm()


@pytest.mark.parametrize("pool_by", ["mean", "last"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_an_embedding_is_made_of_the_hidden_states_of_transformers(
    name: str, pool_by: PoolBy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooling, "CHUNK", 64)
    answers = run(engine(wrap(tiny(name))), [Request(prompt, Pooling(pool_by)) for prompt in PROMPTS])
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert not answer.choices
        expected = pooled(tiny(name), prompt, pool_by)
        error = 2 * of_model(tiny(name), functools.partial(pooled, prompt=prompt, pool_by=pool_by))
        torch.testing.assert_close(torch.tensor(answer.vector), expected, rtol=0, atol=error)


def test_a_prompt_s_states_never_stand_on_the_host_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded memory: each step sees at most CHUNK positions of a long prompt."""
    seen = []
    step = pooling.PoolingStrategy.step

    def watched(self: pooling.PoolingStrategy, observation: pooling.Observation) -> pooling.Move:
        seen.append(len(observation.rows[0].readings))
        return step(self, observation)

    monkeypatch.setattr(pooling.PoolingStrategy, "step", watched)
    (answer,) = run(table_engine(num_pages=200), [Request((1, 2, 3) * 200, Pooling())])
    assert answer.vector
    assert seen == [256, 256, 88]


def test_chunks_and_neighbours_change_no_bit() -> None:
    model = wrap(tiny("llama"))
    requests = [Request(PROMPTS[2], Pooling(how)) for how in ("mean", "last")]
    alone = [run(engine(model), [request])[0].vector for request in requests]
    crowd = [*sampling_requests(random.Random(5), 6, 30), *requests]
    mixed = run(engine(model, tick_tokens=64), crowd)
    assert [answer.vector for answer in mixed[-2:]] == alone


def test_the_last_token_s_state_uses_the_prefix_cache_and_the_mean_cannot() -> None:
    one = engine(wrap(tiny("llama")))
    cached = [
        run(one, [Request(PROMPTS[2], Pooling(how), stopping=StoppingParams(0))])[0].usage for how in ("last",) * 2
    ]
    assert [usage is not None and usage.cached_tokens > 0 for usage in cached] == [False, True]
    (answer,) = run(one, [Request(PROMPTS[2], Pooling("mean"))])
    assert answer.usage is not None
    assert answer.usage.cached_tokens == 0


def test_a_state_that_is_not_finite_fails_its_request_alone() -> None:
    class Poisoned(TableModel):
        def forward(self, batch, layers=()):  # type: ignore[no-untyped-def]
            hidden = super().forward(batch, layers)
            hidden.last[batch.token_ids == 9] = float("nan")
            return hidden

    engine = table_engine(models={"main": Poisoned(), "draft": DraftTableModel()})
    bad, good = run(engine, [Request((1, 9, 2), Pooling()), Request((1, 3, 2), Pooling())])
    assert bad.failure is not None
    assert bad.failure.code == "nan_logits"
    assert good.vector

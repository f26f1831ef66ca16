"""The signature test: every answer in a crowd equals the same request alone, token for token and log-prob for log-prob.

Requests of every strategy arrive, are cancelled and get preempted at random over a page pool that is much too small.
Two deliberate breakages of the engine, each a bug somebody could write, must make the comparison fail.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import pytest
import torch

import decoding.engine.reading
from decoding.contract.params import PARAMS, LogitsParams, Request
from decoding.contract.quantize import QUANTIZED_ON
from decoding.engine.cache import IntegrityError, PageCache
from decoding.engine.engine import Engine
from decoding.model.loading import wrap
from decoding.model.model import Model
from decoding.strategies import STRATEGIES
from tests.decoding.conftest import one_thread
from tests.decoding.crowd import MAKERS, DraftTableModel, crowd_token_bytes, random_requests, run_crowd
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.table_model import TableModel, crowd_engine, table_engine
from tests.decoding.tiny import WHOLE_GROUPS, tiny

VOCAB = 40
EOS = (3,)

__all__ = ["one_thread"]

MakeEngine = Callable[[int], Engine]


def small_table_engine(num_pages: int) -> Engine:
    return crowd_engine(num_pages, VOCAB)


CROWDS_OF_THEIR_OWN = ("grammar", "forced_bos_token_id", "forced_eos_token_ids", "plugin_steps")
"""tests/decoding/strategies/test_grammar.py, tests/decoding/seq2seq, tests/decoding/plugin."""


def alone(make: MakeEngine, requests: list[Request]) -> list[Answer]:
    """Each request by itself, with pages to spare."""
    return [run(make(200), [request])[0] for request in requests]


def assert_parity(make: MakeEngine, requests: list[Request], solo: list[Answer], num_pages: int, seed: int) -> Engine:
    """Run the crowd over `num_pages` and compare all that the survivors said with what they said alone. Those whose own
    masks leave nothing to draw fail alike."""
    crowded = make(num_pages)
    answers = run_crowd(crowded, requests, random.Random(seed))
    answered = [index for index in answers if solo[index].failure is None]
    assert len(answered) > len(requests) * 7 // 10
    for index, answer in answers.items():
        assert answer.failure == solo[index].failure
    for index in answered:
        assert answers[index].said == solo[index].said, f"request {index} differs: {requests[index]}"
    return crowded


def test_the_crowd_holds_every_strategy_and_every_step_of_the_pipeline() -> None:
    requests = random_requests(random.Random(1), 500, VOCAB)
    assert {request.strategy.NAME for request in requests} == set(MAKERS) == set(PARAMS) == set(STRATEGIES)
    neutral = LogitsParams()
    for step in dataclasses.fields(LogitsParams):
        if step.name in CROWDS_OF_THEIR_OWN:
            continue
        assert sum(getattr(r.logits, step.name) != getattr(neutral, step.name) for r in requests) >= 10, step.name


def test_500_requests_in_a_crowd_answer_as_they_do_alone() -> None:
    requests = random_requests(random.Random(1), 500, VOCAB)
    solo = alone(small_table_engine, requests)
    crowded = assert_parity(small_table_engine, requests, solo, num_pages=60, seed=1)
    counters = crowded.scheduler.counters
    assert counters.preemptions > 100
    assert counters.prefix_hits > 500
    assert 0 < crowded.accepted_tokens < crowded.drafted_tokens


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8", "int4"])
def llamas(request: pytest.FixtureRequest) -> dict[str, Model]:
    """A model and its draft model, in each format that weights can have on a CPU."""
    draft = tiny("llama", **WHOLE_GROUPS)
    for weight in draft.parameters():
        weight.data.add_(torch.randn_like(weight), alpha=0.01)  # near enough to be right now and then
    dtype = torch.bfloat16 if request.param == "bfloat16" else torch.float32
    quantize = request.param if request.param in QUANTIZED_ON["cpu"] else "none"
    parts = {"main": tiny("llama", **WHOLE_GROUPS), "draft": draft}
    models = {name: wrap(part.to(dtype), quantize=quantize) for name, part in parts.items()}
    assert all(model.is_compiled for model in models.values())
    for model in models.values():
        model.attention.allocate(200)
    return models


def test_a_real_model_answers_bitwise_the_same_in_a_crowd(llamas: dict[str, Model]) -> None:
    """All sums of a Llama: attention, products and softmax see other neighbours, chunks and paddings."""
    vocab = llamas["main"].info.vocab_size

    def make(num_pages: int) -> Engine:
        caches = {name: PageCache(num_pages, model.attention.page_size) for name, model in llamas.items()}
        token_bytes = crowd_token_bytes(vocab)
        return make_engine(llamas, caches, eos_token_ids=EOS, token_bytes=token_bytes, max_rows=24, tick_tokens=64)

    requests = random_requests(random.Random(9), 120, vocab, longest=60)
    crowded = assert_parity(make, requests, alone(make, requests), num_pages=36, seed=9)
    assert crowded.scheduler.counters.preemptions > 5
    assert crowded.scheduler.counters.prefix_hits > 100
    assert crowded.accepted_tokens > 5


def test_a_fork_that_forgets_to_copy_its_page_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breakage 1: no copy-on-write. Choices of one prompt then write into each other's page, and both index it."""
    requests = random_requests(random.Random(4), 40, VOCAB)
    solo = alone(small_table_engine, requests)
    assert_parity(small_table_engine, requests, solo, num_pages=60, seed=4)
    monkeypatch.setattr(PageCache, "_must_copy", lambda self, table: False)
    with pytest.raises((AssertionError, IntegrityError), match=r"differs|nobody wrote|index is torn"):
        assert_parity(small_table_engine, requests, solo, num_pages=60, seed=4)


def test_a_draw_that_depends_on_the_batch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breakage 2: random numbers keyed by the slot in the batch instead of by the request."""
    keyed = decoding.engine.reading.uniforms
    requests = random_requests(random.Random(5), 40, VOCAB)
    solo = alone(small_table_engine, requests)
    assert_parity(small_table_engine, requests, solo, num_pages=60, seed=5)
    monkeypatch.setattr(decoding.engine.reading, "uniforms", lambda seeds, *key: keyed(range(len(seeds)), *key))
    with pytest.raises(AssertionError, match="differs"):
        assert_parity(small_table_engine, requests, solo, num_pages=60, seed=5)


def test_a_request_that_can_never_fit_is_refused_and_harms_nobody() -> None:
    too_long = Request(tuple(range(30)) * 10)
    fine = random_requests(random.Random(6), 1, VOCAB)[0]
    refused, answer = run(small_table_engine(45), [too_long, fine])
    assert refused.failure is not None
    assert refused.failure.code == "never_fits"
    assert answer.said == run(small_table_engine(200), [fine])[0].said


def test_a_row_of_nans_fails_alone() -> None:
    """Token 9 poisons the model's scores; the neighbour never meets it."""

    def make() -> Engine:
        return table_engine(models={"main": TableModel(nan_after=9), "draft": DraftTableModel()}, eos=EOS)

    candidates = [r for r in random_requests(random.Random(8), 50, VOCAB) if 9 not in r.prompt_ids]
    clean, alone = next((r, said) for r in candidates if (said := run(make(), [r])[0]).failure is None)
    poisoned, answer = run(make(), [Request((1, 2, 9)), clean])
    assert poisoned.failure is not None
    assert poisoned.failure.code == "nan_logits"
    assert isinstance(answer, Answer)
    assert answer.said == alone.said

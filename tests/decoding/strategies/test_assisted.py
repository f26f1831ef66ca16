"""Speculative decoding with a draft model: exact, and the same in any company."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from decoding.contract.params import Assisted, LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.seam import FinishReason, TraceEvent
from decoding.strategies import build
from tests.decoding.crowd import random_requests, run_crowd
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine
from tests.decoding.guessable_model import MarkovModel, NoisyModel
from tests.decoding.table_model import TableModel, table_engine

PROMPT = (3, 1, 4, 1, 5)
GREEDY = LogitsParams(temperature=0)
BYTES = tuple(bytes([65 + i % 26]) for i in range(40))
ALWAYS = Assisted(4, confidence_threshold=0.0)


def engine(noise: float = 0.3, num_pages: int = 64, draft_pages: int = 80, **options: object) -> Engine:
    models = {"main": TableModel(num_pages=num_pages), "draft": NoisyModel(noise, num_pages=draft_pages, page_size=3)}
    return table_engine(models=models, **options)  # type: ignore[arg-type]


def ask(strategy: Assisted = ALWAYS, **changes: object) -> Request:
    request = Request(PROMPT, strategy, GREEDY, StoppingParams(24), seed=3)
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def plain(request: Request) -> Request:
    assert isinstance(request.strategy, Assisted)
    return dataclasses.replace(request, strategy=Sampling(request.strategy.n))


def said(answer: Answer) -> list[object]:
    """Everything but the figures."""
    return [
        (c.token_ids, c.logprobs, c.top, c.finish and (c.finish.reason, c.finish.stop_reason, c.finish.score))
        for c in answer.choices.values()
    ]


def random_request(rng: random.Random, **logits: float) -> Request:
    max_tokens = rng.randrange(1, 26)
    processors = {
        "repetition_penalty": rng.choice([1.0, 1.3]),
        "frequency_penalty": rng.choice([0.0, 0.7]),
        "presence_penalty": rng.choice([0.0, 0.4]),
    }
    return Request(
        tuple(rng.randrange(40) for _ in range(rng.randrange(1, 20))),
        Assisted(
            rng.choice([1, 2, 5, 9, 40]),
            rng.choice(["constant", "heuristic"]),
            rng.choice([0.0, 0.4, 0.9]),
            n=rng.choice([1, 1, 3]),
        ),
        LogitsParams(**(processors | logits)),  # type: ignore[arg-type]
        StoppingParams(
            max_tokens,
            min_tokens=rng.choice([0, max_tokens // 2]),
            stop_token_ids=rng.choice([(), (9,)]),
            stop=rng.choice([(), (), (b"GHI", b"A")]),
            ignore_eos=rng.random() < 0.5,
        ),
        LogprobsParams(rng.choice([None, 0, 3]), rng.choice([None, 1]), mode=rng.choice(["raw", "processed"])),
        seed=rng.randrange(2**40),
        pause_ids=rng.choice([(), (30, 31)]),
    )


def verifications(answer: Answer) -> list[TraceEvent]:
    """Without the trace of the first token, which plain sampling draws."""
    return [event for event in answer.trace if event.kind == "verification"]


def test_greedily_every_token_and_logprob_is_plain_greedys() -> None:
    def answers(requests: list[Request]) -> list[Answer]:
        return run(engine(0.15, 4000, 5000, eos=(7, 33), token_bytes=BYTES, max_rows=2000), requests)

    rng = random.Random(1)
    requests = [random_request(rng, temperature=0.0) for _ in range(120)]
    assisted, greedy = answers(requests), answers([plain(r) for r in requests])
    for request, answer, expected in zip(requests, assisted, greedy, strict=True):
        assert answer.failure is None, answer.failure
        assert said(answer) == said(expected), request
        assert answer.prompt == expected.prompt
    drafted, accepted = (sum(getattr(a.usage, name) for a in assisted) for name in ("drafted", "accepted"))
    assert 0.3 * drafted < accepted < 0.95 * drafted


def exact_pairs(z: torch.Tensor, logits: LogitsParams, prompt: tuple[int, ...]) -> np.ndarray:
    """P(second token, third token) of plain sampling from MarkovModel scores z [vocab, vocab], by the definitions."""

    def conditional(output: tuple[int, ...]) -> torch.Tensor:
        scores = z[(prompt + output)[-1]].double().clone()
        for token in output:
            scores[token] -= logits.frequency_penalty
        scores /= logits.temperature
        if logits.top_k:
            scores[scores < scores.topk(logits.top_k).values[-1]] = -torch.inf
        return scores.softmax(0)

    first = conditional(())
    pairs = torch.zeros_like(z, dtype=torch.float64)
    for a in first.nonzero().flatten().tolist():
        second = conditional((a,))
        for b in second.nonzero().flatten().tolist():
            pairs[b] += first[a] * second[b] * conditional((a, b))
    return pairs.numpy()


@pytest.mark.parametrize("logits", [LogitsParams(0.7), LogitsParams(1.3, top_k=4, frequency_penalty=0.8)])
def test_sampled_tokens_are_distributed_as_plain_samplings(logits: LogitsParams) -> None:
    """Chi-square of the pair of tokens that the first round verifies, 6 ids, 2,000 texts, a draft of other scores.

    A sound sampler with other seeds would fail with odds of one in a million for each of the two cases.
    """
    models = {"main": MarkovModel(6, 1, 20000), "draft": MarkovModel(6, 2, 20000)}
    caches = {name: PageCache(20000, 4) for name in models}
    crowd = make_engine(models, caches, eos_token_ids=(), max_rows=10000)
    strategy = Assisted(3, confidence_threshold=0.2, n=100)
    answers = run(crowd, [Request((1, 2), strategy, logits, StoppingParams(4), seed=i) for i in range(20)])
    texts = [c.token_ids for a in answers for c in a.choices.values()]
    counts = np.zeros((6, 6))
    for _, second, third, _ in texts:
        counts[second, third] += 1
    expected = len(texts) * exact_pairs(models["main"].logits, logits, (1, 2))
    assert not counts[expected == 0].any()
    used = expected >= 5
    statistic = ((counts - expected) ** 2 / np.maximum(expected, 1e-9))[used].sum()
    assert used.sum() > 8
    half_df = torch.tensor(used.sum() / 2.0)  # the cells left out are a cell that is not counted: no df is lost
    assert torch.special.gammaincc(half_df, torch.tensor(statistic / 2)) > 1e-6
    accepted, drafted = (sum(getattr(a.usage, name) for a in answers) for name in ("accepted", "drafted"))
    assert 0.2 * drafted < accepted < 0.8 * drafted


def test_a_draft_unlike_the_target_is_mostly_rejected_and_one_like_it_kept() -> None:
    def share(noise: float) -> float:
        (answer,) = run(engine(noise), [ask(logits=LogitsParams(0.8))])
        assert answer.usage is not None
        assert answer.usage.drafted > 0
        return answer.usage.accepted / answer.usage.drafted

    assert share(0.0) == 1.0
    assert share(3.0) < 0.5


def test_a_perfect_draft_saves_target_forwards() -> None:
    crowd = engine(0.0)
    model = crowd._placed["main"].model
    assert isinstance(model, TableModel)
    (answer,) = run(crowd, [ask()])
    assert answer.usage is not None
    assert answer.usage.accepted == answer.usage.drafted == 24 - 1 - 5
    assert model.num_forwards == 1 + 5


def test_all_draft_rows_run_in_one_forward_a_tick() -> None:
    crowd = engine(0.0, 400, 400)
    draft = crowd._placed["draft"].model
    assert isinstance(draft, TableModel)
    run(crowd, [ask()])
    alone = draft.num_forwards
    run(crowd, [ask(seed=i) for i in range(8)])
    assert draft.num_forwards == 2 * alone


def test_drafting_ends_after_a_token_of_little_confidence_and_keeps_it() -> None:
    (answer,) = run(engine(), [ask(Assisted(6, confidence_threshold=0.25), trace=True)])
    lengths = set()
    for event in verifications(answer):
        q = event.values["q"]
        assert isinstance(q, tuple)
        lengths.add(len(q))
        assert all(confidence >= 0.25 for confidence in q[:-1])
    assert len(lengths) > 2


@pytest.mark.parametrize(("noise", "accepts"), [(0.0, True), (9.0, False)])
def test_the_heuristic_schedule_grows_by_two_and_shrinks_by_one(noise: float, *, accepts: bool) -> None:
    strategy = Assisted(3, "heuristic", 0.0)
    (answer,) = run(engine(noise), [ask(strategy, stopping=StoppingParams(40), trace=True)])
    rounds = [(len(e.values["drafts"]), e.values["accepted"]) for e in verifications(answer)]  # type: ignore[arg-type]
    assert rounds[0][0] == 3
    for (drafted, accepted), (following, _) in list(pairwise(rounds))[:-1]:
        assert following == (drafted + 2 if accepted == drafted else max(1, drafted - 1))
    assert (rounds[1][0] == 5) is accepts


def test_the_same_seed_says_the_same_and_another_something_else() -> None:
    first, again, other = (run(engine(), [ask(logits=LogitsParams(1.2), seed=s)])[0].tokens() for s in (1, 1, 2))
    assert first == again != other


def test_in_a_crowd_with_preemptions_each_says_what_it_says_alone() -> None:
    rng = random.Random(6)
    requests = [random_request(rng, temperature=rng.choice([0.0, 0.7, 1.3])) for _ in range(40)]
    requests += random_requests(rng, 30, 40, longest=20)
    rng.shuffle(requests)

    def make(num_pages: int, draft_pages: int) -> Engine:
        return engine(0.15, num_pages, draft_pages, eos=(7, 33), token_bytes=BYTES, max_rows=24, tick_tokens=48)

    crowded = make(60, 50)
    answers = run_crowd(crowded, requests, random.Random(6))
    assert crowded.scheduler.counters.preemptions > 5
    roomy = make(300, 300)
    for index, answer in answers.items():
        assert answer.failure is None, answer.failure
        assert answer.said == run(roomy, [requests[index]])[0].said, requests[index]


def test_a_server_without_a_draft_model_says_so() -> None:
    good = Request(PROMPT, stopping=StoppingParams(2))
    refused, answer = run(table_engine(), [ask(), good])
    assert refused.failure is not None
    assert refused.failure.code == "no_model"
    assert "draft" in refused.failure.message
    assert len(answer.tokens()) == 2


def test_a_request_that_outgrows_the_draft_models_cache_alone_fails_and_harms_nobody() -> None:
    """18 positions of draft cache. Nobody knows how long the text will be, so it is tried."""
    crowd = engine(num_pages=200, draft_pages=7)
    long = ask(stopping=StoppingParams(60, stop_token_ids=(39,)))
    others = [Request(PROMPT, stopping=StoppingParams(10), seed=i) for i in range(3)]
    failed, *answers = run(crowd, [long, *others])
    assert failed.failure is not None
    assert failed.failure.code == "never_fits"
    assert [a.said for a in answers] == [run(engine(), [r])[0].said for r in others]
    assert crowd.scheduler.counters.preemptions <= 1


def test_a_full_draft_cache_preempts_only_those_who_use_it() -> None:
    crowd = engine(num_pages=400, draft_pages=20, max_rows=64)
    sampling = [Request(PROMPT, stopping=StoppingParams(30, ignore_eos=True), seed=i) for i in range(4)]
    requests = [ask(seed=9), ask(seed=10), ask(seed=11, prompt_ids=(8, 8)), *sampling]
    answers = [Answer() for _ in requests]
    for i, request in enumerate(requests):
        crowd.add(i, request, build)
    while crowd.has_work:
        for output in crowd.tick():
            answers[output.request_id].take(output)
    preempted = [a.usage.preemptions for a in answers if a.usage]
    assert sum(preempted[:3]) > 0
    assert preempted[3:] == [0] * 4
    assert [a.said for a in answers] == [run(engine(), [r])[0].said for r in requests]


def test_a_draft_cache_too_small_for_what_is_certain_refuses_at_once() -> None:
    (answer,) = run(engine(draft_pages=5), [ask(stopping=StoppingParams(30, ignore_eos=True))])
    assert answer.failure is not None
    assert answer.failure.code == "never_fits"


def test_an_end_inside_the_accepted_tokens_is_the_end() -> None:
    """An accepted EOS ends the text; the draft model drafts nothing behind it."""
    text = run(engine(), [plain(ask())])[0].tokens()
    eos = next(t for i, t in enumerate(text) if i > 5 and t not in text[:i])
    (answer,) = run(engine(0.0, eos=(eos,)), [ask(trace=True)])
    finish = answer.choices[0].finish
    assert finish is not None
    assert finish.reason is FinishReason.STOP
    assert answer.tokens() == text[: text.index(eos) + 1]
    drafts = verifications(answer)[-1].values["drafts"]
    assert isinstance(drafts, tuple)
    assert eos not in drafts[:-1]


class SixModel(TableModel):
    """Sure of token 6."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().head(hidden) + 300.0 * (torch.arange(self.vocab) == 6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_a_draft_after_which_nothing_is_allowed_is_the_last_of_its_round(temperature: float, threshold: float) -> None:
    """The draft model went on from it, found nothing, and the whole request failed, which plain decoding answers."""
    models = {"main": TableModel(), "draft": SixModel()}
    logits = LogitsParams(temperature, allowed_token_ids=(5, 6), bad_words=((6, 5), (6, 6)), logit_bias=((5, 100.0),))
    request = ask(Assisted(4, confidence_threshold=threshold), logits=logits)
    speculated, plainly = run(table_engine(models=models), [request, plain(request)])
    assert said(speculated) == said(plainly)
    assert speculated.usage is not None
    assert speculated.usage.accepted == 0 < speculated.usage.drafted


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_where_plain_decoding_finds_nothing_allowed_so_does_speculation(temperature: float) -> None:
    models = {"main": SixModel(), "draft": SixModel()}
    logits = LogitsParams(temperature, allowed_token_ids=(5, 6), bad_words=((6, 5), (6, 6)))
    found = {a.failure and a.failure.code for a in run(table_engine(models=models), [ask(logits=logits)])}
    assert found == {"nothing_to_draw"}


def test_sampled_logprobs_are_the_targets() -> None:
    """They equal what the target says of the very same text as a prompt."""
    request = ask(logits=LogitsParams(0.9, top_k=12), logprobs=LogprobsParams(2))
    (answer,) = run(engine(), [request])
    choice = answer.choices[0]
    scored = Request((*PROMPT, *choice.token_ids), logprobs=LogprobsParams(None, 2), stopping=StoppingParams(0))
    (read,) = run(engine(), [scored])
    assert read.prompt is not None
    assert choice.logprobs == list(read.prompt.logprobs[len(PROMPT) :])
    assert choice.top == list(read.prompt.top[len(PROMPT) :])
    assert choice.finish is not None
    assert choice.finish.score == pytest.approx(sum(choice.logprobs))
    processed = dataclasses.replace(request, logprobs=LogprobsParams(2, mode="processed"))
    (warped,) = run(engine(), [processed])
    assert warped.tokens() == choice.token_ids
    assert all(w > raw for w, raw in zip(warped.choices[0].logprobs, choice.logprobs, strict=True))
    assert Counter(len(top) for top in warped.choices[0].top) == {2: 24}


def test_prefix_hits_of_the_draft_model_are_not_counted_as_prompt_tokens() -> None:
    crowd = engine()
    long = ask(prompt_ids=tuple(range(20)))
    run(crowd, [long])
    (again,) = run(crowd, [long])
    assert again.usage is not None
    assert 0 < again.usage.cached_tokens < 20
    assert isinstance(crowd._placed["draft"].cache, PageCache)

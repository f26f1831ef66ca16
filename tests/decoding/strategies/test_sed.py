"""Self-evaluation decoding: equal to stage-by-stage generates of transformers 4.55.4, what it reuses, its edges."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from decoding.contract.params import LogitsParams, LogprobsParams, Request, Sampling, Sed, StoppingParams
from decoding.strategies import build
from tests.decoding.drive import Answer, run
from tests.decoding.strategies.branching import (
    MAX_TOKENS,
    RECORDED,
    answers_among_neighbours,
    assert_same_in_a_crowd,
    changed,
    golden_engine,
    probability_error,
)
from tests.decoding.table_model import TableModel, states_of, table_engine

GREEDY = LogitsParams(temperature=0)
PROMPT = (3, 1, 4, 1, 5)
QUESTION = (30, 31, 32)
INDICES = range(len(RECORDED["sed"]))


def golden_cases(index: int) -> list[tuple[Request, dict[str, Any]]]:
    return [
        (golden_request(run["params"], case), case) for run in RECORDED["sed"][index]["runs"] for case in run["cases"]
    ]


def golden_request(params: dict[str, Any], case: dict[str, Any]) -> Request:
    params = params | {"eval_before": tuple(params.get("eval_before", ()))}
    question = {"eval_ids": tuple(RECORDED["eval_ids"]), "yes_id": RECORDED["yes_id"], "no_id": RECORDED["no_id"]}
    return Request(
        tuple(case["prompt_token_ids"]),
        Sed(**question, **params),
        GREEDY,
        StoppingParams(MAX_TOKENS),
        trace=True,
    )


def assert_golden(answer: Answer, index: int, case: dict[str, Any]) -> None:
    """The text, and at each point what was tried and how it was judged."""
    assert answer.tokens() == case["token_ids"]
    assert figures(answer)["points"] == len(case["points"])
    for point, (found, tried) in zip(case["points"], points(answer), strict=True):
        assert found["token_index"] == point["at"]
        for recorded, got in zip(point["candidates"], tried, strict=True):
            assert got["tokens"] == recorded["token_ids"]
            for name in ("p_gen", "p_se", "score"):
                assert got[name] == pytest.approx(recorded[name], abs=probability_error(index))
        assert [got["chosen"] for got in tried] == [i == point["chosen"] for i in range(len(tried))]


def figures(answer: Answer) -> dict[str, Any]:
    finish = answer.choices[0].finish
    assert finish is not None
    return dict(finish.figures)


def points(answer: Answer) -> list[tuple[Any, list[Any]]]:
    """Each point's event with those of its candidates."""
    found: list[tuple[Any, list[Any]]] = []
    opened = [event.values for event in answer.trace if event.kind == "point"]
    tried: list[Any] = [event.values for event in answer.trace if event.kind == "candidate"]
    for point in opened:
        size = next((i for i, t in enumerate(tried[1:], 1) if t["candidate"] == 0), len(tried))
        found.append((point, tried[:size]))
        tried = tried[size:]
    return found


@pytest.mark.parametrize("index", INDICES)
def test_it_equals_stage_by_stage_generates(index: int) -> None:
    for request, case in golden_cases(index)[::2]:
        assert_golden(run(golden_engine(index), [request])[0], index, case)


@pytest.mark.parametrize("index", INDICES)
def test_it_equals_them_among_sampling_neighbours_over_too_few_pages(index: int) -> None:
    requests, cases = zip(*golden_cases(index), strict=True)
    for answer, case in zip(answers_among_neighbours(index, list(requests)), cases, strict=True):
        assert_golden(answer, index, case)


def test_the_goldens_exercise_what_they_are_for() -> None:
    recorded = [point for index in INDICES for _, case in golden_cases(index) for point in case["points"]]
    assert len(recorded) > 100
    assert sum(point["chosen"] not in {0, None} for point in recorded) > 20
    assert any(point["chosen"] is None for point in recorded)
    lengths = {len(c["token_ids"]) for point in recorded for c in point["candidates"]}
    assert 1 in lengths


def ask(**changes: Any) -> Request:
    own = {name: changes.pop(name) for name in list(changes) if name in Sed.__dataclass_fields__}
    question = {"eval_ids": QUESTION, "yes_id": 33, "no_id": 34}
    sed = Sed(**question | {"delta_ratio": 0.6, "k": 3, "alpha": 0.5, "max_points": 8} | own)
    return changed(Request(PROMPT, sed, GREEDY, StoppingParams(16), LogprobsParams(2)), **changes)


def answer(request: Request, **options: Any) -> Answer:
    return run(table_engine(**options), [request])[0]


def test_without_points_it_is_greedy() -> None:
    greedy = answer(changed(ask(), strategy=Sampling()))
    for never in (ask(max_points=0), ask(delta_ratio=1.0, min_probability=0.0)):
        settled = answer(never)
        assert settled.tokens() == greedy.tokens()
        assert settled.choices[0].logprobs == greedy.choices[0].logprobs
        assert settled.choices[0].top == greedy.choices[0].top
        assert figures(settled) == {"points": 0, "forwards": 16}


def test_with_alpha_zero_it_is_greedy_however_often_it_asks() -> None:
    settled, greedy = answer(ask(alpha=0.0)), answer(changed(ask(), strategy=Sampling()))
    assert figures(settled)["points"] > 1
    assert settled.tokens() == greedy.tokens()


def test_with_alpha_one_it_may_leave_the_greedy_path() -> None:
    asked, greedy = answer(ask(alpha=1.0)), answer(changed(ask(), strategy=Sampling()))
    assert asked.tokens() != greedy.tokens()


def test_the_winners_rollout_is_not_run_again() -> None:
    """One point at the first token: k rollouts of the rest and k questions, and then nothing is left to do."""
    model = TableModel()
    settled = answer(ask(k=3, delta_ratio=0.0, max_points=1, max_rollout=64), models={"main": model})
    assert len(settled.tokens()) == 16
    assert figures(settled)["points"] == 1
    assert model.num_tokens == len(PROMPT) + 3 * (16 + len(QUESTION))


def test_what_is_settled_is_emitted_at_once_and_never_more() -> None:
    request = ask(k=2, max_rollout=4)
    engine = table_engine()
    engine.add(0, request, build)
    ticks = []
    while engine.has_work:
        ticks += [len(e.token_ids) for o in engine.tick() for e in o.emits]
    assert len(ticks) > 2
    assert sum(ticks) == 16
    assert max(ticks) <= 6


@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_the_text_reports_the_logprobs_that_it_has_as_a_prompt(mode: Any) -> None:
    logits = LogitsParams(temperature=0, repetition_penalty=1.5)
    settled = answer(ask(alpha=1.0, logits=logits, logprobs=LogprobsParams(3, mode=mode)))
    assert figures(settled)["points"] > 2
    text = (*PROMPT, *settled.tokens())
    prompt = answer(Request(text, logits=logits, logprobs=LogprobsParams(prompt=3, mode=mode))).prompt
    assert prompt is not None
    assert tuple(settled.choices[0].logprobs) == prompt.logprobs[len(PROMPT) :]
    assert tuple(settled.choices[0].top) == prompt.top[len(PROMPT) :]


def test_the_question_is_unseen_by_penalties() -> None:
    """The question holds every token that may be drawn: did penalties see it, the texts would differ."""
    logits = LogitsParams(temperature=0, repetition_penalty=3.0)
    one, other = (ask(alpha=0.0, logits=logits, eval_ids=ids) for ids in ((30,), tuple(range(30))))
    assert figures(answer(one))["points"] > 0
    assert answer(one).tokens() == answer(other).tokens() == answer(changed(one, strategy=Sampling())).tokens()


def test_an_entropy_in_bits_takes_the_place_of_the_ratio() -> None:
    """Four equal logits of forty and the rest far below: 2 bits, 1.39 nats, a ratio of 1."""
    engine = {"models": {"main": FourEqual()}}
    for delta_entropy, points in ((1.9, 1), (2.1, 0)):
        asked = ask(delta_ratio=0.1, delta_entropy=delta_entropy, max_points=1)
        assert figures(answer(asked, **engine))["points"] == points
    assert figures(answer(ask(delta_ratio=1.0, min_probability=0.2, max_points=1), **engine))["points"] == 0
    assert figures(answer(ask(delta_ratio=1.0, min_probability=0.3, max_points=1), **engine))["points"] == 1


class FourEqual(TableModel):
    """The best four ids of every position are equally likely, and next to nothing else is."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        ranks = super().head(hidden).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return torch.where(ranks < 4, 20.0, -20.0)


def probabilities(ids: tuple[int, ...]) -> list[float]:
    model = TableModel()
    p: list[float] = model.head(states_of(model, ids)[-1:])[0].double().softmax(-1).tolist()
    return p


def self_evaluation(request: Request) -> list[int]:
    """The authors' rule, every text evaluated anew: the judge's own context, P(yes) and p_gen as they are."""
    sed, num_points, output = request.strategy, 0, []
    assert isinstance(sed, Sed)
    while len(output) < request.stopping.max_tokens:
        p = probabilities((*PROMPT, *output))
        best = sorted(range(40), key=lambda i: (-p[i], i))
        is_chaotic = p[best[1]] > sed.delta_ratio * p[best[0]] or p[best[0]] < sed.min_probability
        if not is_chaotic or num_points == sed.max_points:
            output.append(best[0])
            continue
        num_points += 1
        judged = []
        for token in best[: sed.k]:
            text = [*output, token]
            while len(text) < min(request.stopping.max_tokens, len(output) + 1 + sed.max_rollout):
                q = probabilities((*PROMPT, *text))
                text.append(max(range(40), key=lambda i: q[i]))
            read = (*sed.eval_before, *text) if sed.eval_before else (*PROMPT, *text)
            judged.append(probabilities((*read, *sed.eval_ids))[sed.yes_id])
        scores = [sed.alpha * s + (1 - sed.alpha) * p[i] for s, i in zip(judged, best, strict=False)]
        output.append(best[sed.k] if max(judged) < 1e-3 else best[scores.index(max(scores))])
    return output


@pytest.mark.parametrize("eval_before", [(), (20, 21, *PROMPT)])
@pytest.mark.parametrize(("alpha", "k"), [(0.8, 2), (1.0, 4), (0.3, 3)])
def test_it_is_the_authors_rule(eval_before: tuple[int, ...], alpha: float, k: int) -> None:
    num_excluded = 0
    for yes_id in range(24, 34):
        asked = ask(alpha=alpha, k=k, eval_before=eval_before, yes_id=yes_id, max_rollout=5, trace=True)
        found = answer(asked)
        assert found.tokens() == self_evaluation(asked)
        num_excluded += sum(not any(t["chosen"] for t in tried) for _, tried in points(found))
    assert num_excluded > 0 or k > 2


def test_where_there_is_no_other_token_the_best_of_the_rejected_is_taken() -> None:
    two = LogitsParams(temperature=0, allowed_token_ids=(1, 2))
    rejecting = ask(logits=two, delta_ratio=0.0, yes_id=3, k=2, alpha=0.0, max_points=40)
    greedy = answer(changed(rejecting, strategy=Sampling()))
    assert answer(rejecting).tokens() == greedy.tokens()


def test_a_row_stays_within_the_length_it_announces() -> None:
    request = ask()
    assert request.max_length == len(PROMPT) + 16 + len(QUESTION)
    assert answer(request, max_model_len=request.max_length).failure is None
    judged = ask(eval_before=tuple(range(20)))
    assert judged.max_length == 20 + 16 + len(QUESTION)
    assert answer(judged, max_model_len=judged.max_length, max_rows=judged.max_rows).failure is None


def test_prompt_scores_and_no_tokens_at_all() -> None:
    scored = ask(logprobs=LogprobsParams(0, prompt=2))
    plain = changed(scored, strategy=Sampling())
    assert answer(scored).prompt == answer(plain).prompt is not None
    empty = answer(changed(scored, stopping=StoppingParams(0)))
    assert empty.prompt == answer(plain).prompt
    assert empty.tokens() == []


def test_a_trace_changes_nothing() -> None:
    traced, silent = answer(ask(trace=True)), answer(ask())
    assert traced.said == silent.said
    assert traced.trace
    assert not silent.trace


def test_every_excluded_token_is_left_untried() -> None:
    even = LogitsParams(temperature=0, allowed_token_ids=tuple(range(0, 40, 2)))
    settled = answer(ask(logits=even, delta_ratio=0.0, alpha=1.0))
    assert all(t % 2 == 0 for t in settled.tokens())
    assert figures(settled)["points"] == 8


def draw(rng: random.Random, request: Request) -> Request:
    strategy = Sed(
        eval_ids=tuple(rng.randrange(40) for _ in range(rng.randrange(1, 7))),
        yes_id=rng.randrange(40),
        no_id=rng.randrange(40),
        k=rng.randrange(2, 5),
        delta_ratio=rng.choice([0.3, 0.6, 0.9]),
        min_probability=rng.choice([0.0, 0.2]),
        eval_before=rng.choice([(), (), tuple(range(5, 15))]),
        delta_entropy=rng.choice([None, None, 2.5]),
        alpha=rng.choice([0.0, 0.5, 1.0]),
        max_rollout=rng.choice([1, 4, 30]),
        max_points=rng.choice([1, 3, 8]),
    )
    return changed(request, strategy=strategy)


def test_in_a_crowd_it_answers_as_alone() -> None:
    assert_same_in_a_crowd(draw, seed=43, num_pages=40)

"""CoT-decoding: equal to k greedy generates of transformers 4.55.4, its answers, its ranking, its edges."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from decoding.contract.answers import compile_answer
from decoding.contract.params import (
    CotDecoding,
    InvalidParam,
    LogitsParams,
    LogprobsParams,
    Request,
    Sampling,
    StoppingParams,
)
from decoding.seam import FinishReason
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
from tests.decoding.strategies.table_oracle import logprob_error
from tests.decoding.table_model import TableModel, table_engine

GREEDY = LogitsParams(temperature=0)
PROMPT = (3, 1, 4, 1, 5)
DIGITS = tuple(b"0123456789 .abcdefghijklmnopqrstuvwxyz\n,$"[i : i + 1] for i in range(40))
INDICES = range(len(RECORDED["cot_decoding"]))


def golden_cases(index: int) -> list[tuple[Request, dict[str, Any]]]:
    """All that one model recorded, every branch asked for."""
    return [(golden_request(run["params"], case), case) for run in runs(index) for case in run["cases"]]


def runs(index: int) -> Any:
    return RECORDED["cot_decoding"][index]["runs"]


def golden_request(params: dict[str, Any], case: dict[str, Any]) -> Request:
    own = {name: value for name, value in params.items() if name != "repetition_penalty"}
    own |= {"suffix_ids": tuple(own["suffix_ids"])} if "suffix_ids" in own else {}
    return Request(
        tuple(case["prompt_token_ids"]),
        CotDecoding(n=params["k"], **own),
        LogitsParams(temperature=0, repetition_penalty=params.get("repetition_penalty", 1.0)),
        StoppingParams(MAX_TOKENS),
        LogprobsParams(0),
    )


def assert_golden(answer: Answer, index: int, case: dict[str, Any]) -> None:
    """The branches that take part are returned in the recorded order, with their answers and confidences."""
    error = 2 * probability_error(index)  # of a mean of differences of two
    for choice, branch in enumerate(case["ranking"]):
        recorded, got = case["branches"][branch], answer.choices[choice]
        assert got.token_ids == recorded["token_ids"]
        figures = dict(got.finish.figures) if got.finish else {}
        assert figures.get("answer") == recorded["answer"]
        assert figures["cot_confidence"] == pytest.approx(recorded["delta"], abs=error)
    ignored = [b["token_ids"] for i, b in enumerate(case["branches"]) if i not in case["ranking"]]
    rest = [answer.tokens(i) for i in range(len(case["ranking"]), len(answer.choices))]
    assert rest[: len(ignored)] == ignored


@pytest.mark.parametrize("index", INDICES)
def test_it_equals_a_loop_of_greedy_generates(index: int) -> None:
    for request, case in golden_cases(index)[::3]:
        assert_golden(run(golden_engine(index), [request])[0], index, case)


@pytest.mark.parametrize("index", INDICES)
def test_it_equals_the_loop_among_sampling_neighbours_over_too_few_pages(index: int) -> None:
    requests, cases = zip(*golden_cases(index), strict=True)
    for answer, case in zip(answers_among_neighbours(index, list(requests)), cases, strict=True):
        assert_golden(answer, index, case)


def test_the_goldens_exercise_what_they_are_for() -> None:
    recorded = [case for index in INDICES for run in runs(index) for case in run["cases"]]
    answers = [b["answer"] for case in recorded for b in case["branches"]]
    assert answers.count(None) > 10
    assert any(len(case["ranking"]) < len(case["branches"]) for case in recorded)
    assert any("." in a for a in answers if a)
    surest = [max(case["ranking"], key=lambda i: case["branches"][i]["delta"]) for case in recorded]
    assert any(best != case["ranking"][0] for best, case in zip(surest, recorded, strict=True))


def ask(strategy: CotDecoding, **changes: Any) -> Request:
    return changed(Request(PROMPT, strategy, GREEDY, StoppingParams(12), LogprobsParams(3)), **changes)


def answer(request: Request, eos: tuple[int, ...] = (), **options: Any) -> Answer:
    return run(table_engine(eos=eos, token_bytes=DIGITS, **options), [request])[0]


def figures(answer: Answer, choice: int = 0) -> dict[str, Any]:
    finish = answer.choices[choice].finish
    assert finish is not None
    return dict(finish.figures)


def test_one_of_the_branches_is_the_greedy_text() -> None:
    (greedy,) = run(table_engine(), [changed(ask(CotDecoding()), strategy=Sampling())])
    branches = answer(ask(CotDecoding(k=4, n=4)))
    assert greedy.tokens() in [branches.tokens(i) for i in range(4)]


def test_branches_share_the_prompt_and_what_precedes_the_crossing() -> None:
    model = TableModel()
    branches = run(table_engine(models={"main": model}), [ask(CotDecoding(k=3, n=3, branch_at=4))])[0]
    assert len({tuple(branches.tokens(i)[:4]) for i in range(3)}) == 1
    assert len({branches.tokens(i)[4] for i in range(3)}) == 3
    assert model.num_tokens == len(PROMPT) + 4 + 3 * 7


@pytest.mark.parametrize("mode", ["raw", "processed"])
def test_every_branch_reports_the_logprobs_that_its_text_has_as_a_prompt(mode: Any) -> None:
    """The forced first tokens too."""
    logits = LogitsParams(temperature=0, repetition_penalty=1.5)
    request = ask(CotDecoding(k=3, n=3, branch_at=2), logits=logits, logprobs=LogprobsParams(3, mode=mode))
    for choice in answer(request).choices.values():
        scored = Request((*PROMPT, *choice.token_ids), logits=logits, logprobs=LogprobsParams(prompt=3, mode=mode))
        prompt = answer(scored).prompt
        assert prompt is not None
        assert tuple(choice.logprobs) == prompt.logprobs[len(PROMPT) :]
        assert tuple(choice.top) == prompt.top[len(PROMPT) :]


def test_the_finish_tells_what_it_was_ranked_by() -> None:
    single = answer(ask(CotDecoding(k=5, n=5, aggregate=False)))
    scores = [single.choices[i].finish.score for i in range(5)]  # type: ignore[union-attr]
    assert scores == sorted(scores, reverse=True)
    assert scores == [figures(single, i)["cot_confidence"] for i in range(5)]
    together = answer(ask(CotDecoding(k=10, n=10, answer_regex=r"\d")))
    finishes = [together.choices[i].finish for i in range(10)]
    sums: dict[str, float] = {}
    for i in range(10):
        sums[figures(together, i)["answer"]] = (
            sums.get(figures(together, i)["answer"], 0) + figures(together, i)["cot_confidence"]
        )
    assert len(sums) < 10
    assert [f.score for f in finishes if f] == pytest.approx([sums[figures(together, i)["answer"]] for i in range(10)])
    assert [figures(together, i)["answer"] for i in range(len(sums))] == sorted(sums, key=lambda a: -sums[a])


def test_where_no_branch_has_an_answer_all_tokens_count() -> None:
    none = answer(ask(CotDecoding(k=4, answer_regex="XYZ")))
    every = answer(ask(CotDecoding(k=4, answer_regex="XYZ", span="all")))
    assert none.said == every.said
    assert "answer" not in figures(none)


def test_a_stop_sequence_is_no_part_of_the_answer() -> None:
    """Every digit stops the text, so without it no number is left; the words before it still are."""
    digits = tuple(bytes([c]) for c in b"0123456789")
    request = ask(CotDecoding(k=4, n=4), stopping=StoppingParams(40, stop=digits))
    stopped = answer(request)
    assert any(c.finish and c.finish.reason is FinishReason.STOP for c in stopped.choices.values())
    assert all("answer" not in figures(stopped, i) for i in range(4) if stopped.choices[i].finish)


def test_a_token_that_the_pipeline_excludes_begins_no_branch() -> None:
    even = LogitsParams(temperature=0, allowed_token_ids=tuple(range(0, 40, 2)))
    branches = answer(ask(CotDecoding(k=6, n=6), logits=even))
    assert all(t % 2 == 0 for i in range(6) for t in branches.tokens(i))
    assert len({branches.tokens(i)[0] for i in range(6)}) == 6


def test_where_fewer_tokens_are_allowed_than_choices_asked_the_best_is_repeated() -> None:
    two = LogitsParams(temperature=0, allowed_token_ids=(7, 9))
    branches = answer(ask(CotDecoding(k=4, n=4), logits=two))
    assert {branches.tokens(i)[0] for i in range(2)} == {7, 9}
    assert branches.choices[2] == branches.choices[3] == branches.choices[0]


def test_a_text_that_ends_before_the_crossing_is_the_only_branch() -> None:
    short = answer(ask(CotDecoding(k=4, n=2, branch_at=5), stopping=StoppingParams(3)))
    greedy = answer(changed(ask(CotDecoding()), strategy=Sampling(), stopping=StoppingParams(3)))
    assert short.tokens(0) == short.tokens(1) == greedy.tokens()


def test_the_suffix_and_its_answer_are_not_part_of_the_text() -> None:
    plain = answer(ask(CotDecoding(k=3, n=3, span="all")))
    asked = answer(ask(CotDecoding(k=3, n=3, span="all", suffix_ids=(20, 21), max_answer=4)))
    assert {tuple(asked.tokens(i)) for i in range(3)} == {tuple(plain.tokens(i)) for i in range(3)}
    assert [figures(asked, i) for i in range(3)] != [figures(plain, i) for i in range(3)]


def test_the_suffix_is_fed_like_pauses_that_no_penalty_sees() -> None:
    """What is said after it equals plain decoding of prompt + text with the suffix as pauses."""
    suffix, logits = (*range(0, 40, 2),), LogitsParams(temperature=0, repetition_penalty=2.5)
    letters = tuple(bytes([0x41 + i]) for i in range(40))

    def said(request: Request) -> Answer:
        return run(table_engine(token_bytes=letters), [request])[0]

    asked = said(ask(CotDecoding(k=4, n=4, suffix_ids=suffix, max_answer=6), logits=logits))
    for i in range(4):
        prompt = (*PROMPT, *asked.tokens(i))
        plain = Request(prompt, Sampling(), logits, StoppingParams(6), pause_ids=suffix)
        text = b"".join(letters[t] for t in said(plain).tokens()).decode()
        assert figures(asked, i)["answer"] == text.casefold()
        seen = changed(plain, prompt_ids=prompt + suffix, pause_ids=())
        assert said(seen).tokens() != said(plain).tokens()


def test_a_suffixed_branch_stays_within_the_length_it_announces() -> None:
    request = ask(CotDecoding(k=2, suffix_ids=(20, 21, 22), max_answer=4))
    assert request.max_length == len(PROMPT) + 12 - 1 + 3 + 4
    assert answer(request, max_model_len=request.max_length).failure is None
    refused = answer(request, max_model_len=request.max_length - 1).failure
    assert refused is not None
    assert refused.code == "never_fits"


def test_nothing_is_emitted_before_all_branches_are_over() -> None:
    engine = table_engine(token_bytes=DIGITS)
    whole = run(engine, [ask(CotDecoding(k=3))])[0]
    assert whole.usage is not None
    assert len(whole.tokens()) == 12


def test_prompt_scores_and_no_tokens_at_all() -> None:
    scored = ask(CotDecoding(k=3, n=2), logprobs=LogprobsParams(0, prompt=2))
    plain = changed(scored, strategy=Sampling())
    assert answer(scored).prompt == answer(plain).prompt is not None
    empty = answer(changed(scored, stopping=StoppingParams(0)))
    assert empty.prompt == answer(plain).prompt
    assert [empty.tokens(i) for i in range(2)] == [[], []]


def test_a_trace_tells_candidates_and_branches() -> None:
    request = ask(CotDecoding(k=3, n=2), trace=True)
    traced = answer(request)
    kinds = [event.kind for event in traced.trace]
    assert kinds == ["branching", "branch", "branch", "branch"]
    first = traced.trace[0].values["candidates"]
    assert isinstance(first, list)
    assert sum(c["probability"] for c in first) < 1
    assert traced.trace[1].values["tokens"] == traced.tokens(0)
    assert traced.trace[1].values["cot_confidence"] == figures(traced)["cot_confidence"]
    assert traced.said == answer(changed(request, trace=False)).said
    assert not answer(changed(request, trace=False)).trace


def test_above_temperature_zero_the_branches_are_samples() -> None:
    hot = ask(CotDecoding(k=3, n=3), logits=LogitsParams(temperature=1.5), seed=1)
    assert answer(hot).said == answer(hot).said != answer(changed(hot, seed=2)).said


def test_an_answer_pattern_that_re2_refuses_is_an_invalid_param() -> None:
    with pytest.raises(InvalidParam, match="answer_regex"):
        compile_answer(r"(a)\1")


def draw(rng: random.Random, request: Request) -> Request:
    k = rng.randrange(1, 6)
    strategy = CotDecoding(
        k=k,
        n=rng.randrange(1, k + 1),
        branch_at=rng.choice([0, 0, 1, 4]),
        aggregate=rng.random() < 0.5,
        answer_regex=rng.choice([None, r"[a-m]+", r"(\d)[a-z]"]),
        suffix_ids=rng.choice([(), (rng.randrange(40), rng.randrange(40))]),
        span=rng.choice(["answer", "all"]),
        max_answer=rng.randrange(1, 6),
    )
    return changed(request, strategy=strategy)


def test_in_a_crowd_it_answers_as_alone() -> None:
    assert_same_in_a_crowd(draw, seed=31, num_pages=46)


def test_confidence_is_a_mean_of_probability_gaps() -> None:
    """Read off the reported raw log-probs of a greedy branch, position by position."""
    whole = answer(ask(CotDecoding(k=1, span="all"), logprobs=LogprobsParams(2)))
    gaps = [math.exp(top[0][1]) - math.exp(top[1][1]) for top in whole.choices[0].top]
    assert figures(whole)["cot_confidence"] == pytest.approx(sum(gaps) / len(gaps), abs=2 * logprob_error())

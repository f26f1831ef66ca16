"""Every deterministic strategy over HTTP on the real model, all in one continuous batch: transformers' own tokens.

`smollm2_strategies.json` holds what transformers 4.55.4 says alone; speculation must say what greedy decoding says.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conformance.exchange import Said, assert_idle, client, complete
from tests.conformance.servers.drafting_server import drafting_server
from tests.decoding.rounding_error import SMOLLM2_LOGPROB
from tests.running_server import RunningServer

GOLDENS = Path(__file__).parents[1] / "goldens"
CONCURRENCY = 24
GREEDY_TOKENS = 20

# what the answer must say that ran; "greedy" where it is not named here
STRATEGIES = {
    "guidance": "guided",
    "dola_low": "dola",
    "dola_high": "dola",
    "dola_list": "dola",
    "contrastive": "contrastive",
    "beam_4": "beam",
    "beam_4_first_best": "beam",
    "beam_3_never": "beam",
    "beam_3_penalised": "beam",
    "group_beam": "group_beam",
    "prompt_lookup": "prompt_lookup",
    "assisted": "assisted",
    "assisted_heuristic": "assisted",
}
SPECULATION: dict[str, dict[str, Any]] = {
    "prompt_lookup": {"prompt_lookup_num_tokens": 6, "max_matching_ngram_size": 2},
    "assisted": {"speculative": True, "num_assistant_tokens": 3, "assistant_confidence_threshold": 0.0},
    "assisted_heuristic": {"speculative": True, "num_assistant_tokens_schedule": "heuristic"},
}

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Case:
    """A recorded answer. choices: token_ids, finish_reason and, where transformers gives it, score."""

    name: str
    prompt: str
    body: dict[str, Any]
    choices: list[dict[str, Any]]


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((GOLDENS / name).read_text(encoding="utf-8")))


def recorded_cases() -> Iterator[Case]:
    golden = read("smollm2_strategies.json")
    for strategy in golden["strategies"]:
        for case in strategy["cases"]:
            prompt = {"prompt": golden["prompts"][case["prompt"]], "max_tokens": strategy["max_tokens"]}
            yield Case(strategy["name"], case["prompt"], prompt | strategy["body"], case["choices"])


def greedy_cases() -> Iterator[Case]:
    """Speculation of every kind must say what was recorded of plain greedy decoding."""
    for case in read("smollm2_greedy.json")["prompts"]:
        prompt = {"prompt": case["prompt_token_ids"], "max_tokens": GREEDY_TOKENS}
        is_cut = len(case["token_ids"]) > GREEDY_TOKENS
        ids = case["token_ids"][:GREEDY_TOKENS]
        choice = {"token_ids": ids, "finish_reason": "length" if is_cut else case["finish_reason"]}
        for name, body in SPECULATION.items():
            yield Case(name, case["name"], prompt | body, [choice])


CASES = [*recorded_cases(), *greedy_cases()]
NAMES = list(dict.fromkeys(case.name for case in CASES))


@pytest.fixture(scope="module")
def server(smol_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    directory = tmp_path_factory.mktemp("draft") / "model"
    with drafting_server(smol_directory, directory, "--dtype", "float32") as server:
        yield server


Answers = dict[tuple[str, str], Said | AssertionError]


@pytest.fixture(scope="module")
def answers(server: RunningServer) -> Answers:
    """All cases in one crowd, shuffled so that the strategies meet."""
    return asyncio.run(ask_all(server.url, random.Random(3).sample(CASES, len(CASES))))


async def ask_all(url: str, cases: Sequence[Case]) -> Answers:
    gate = asyncio.Semaphore(CONCURRENCY)
    async with client(url) as http:
        answers = await asyncio.gather(*(ask(http, case, gate) for case in cases))
        await assert_idle(http)
    return {(case.name, case.prompt): answer for case, answer in zip(cases, answers, strict=True)}


async def ask(http: httpx.AsyncClient, case: Case, gate: asyncio.Semaphore) -> Said | AssertionError:
    """A refusal is one case's failure, not that of all."""
    async with gate:
        try:
            return await complete(http, case.body | {"temperature": 0})
        except AssertionError as refused:
            return refused


def said(answers: Answers, case: Case) -> Said:
    answer = answers[case.name, case.prompt]
    if isinstance(answer, AssertionError):
        raise answer
    return answer


def cases_of(name: str) -> list[Case]:
    return [case for case in CASES if case.name == name]


@pytest.mark.parametrize("name", NAMES)
def test_20_prompts_give_the_tokens_that_transformers_gives(name: str, answers: Answers) -> None:
    cases = cases_of(name)
    assert len(cases) == 20
    for case in cases:
        choices = said(answers, case).choices
        got = [(choices[i].token_ids, choices[i].finish_reason) for i in range(len(choices))]
        assert got == [(c["token_ids"], c["finish_reason"]) for c in case.choices], case.prompt


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_says_what_ran(name: str, answers: Answers) -> None:
    ran = {said(answers, case).head["decoding"]["strategy"] for case in cases_of(name)}
    assert ran == {STRATEGIES.get(name, "greedy")}


@pytest.mark.parametrize("name", [name for name in NAMES if "score" in cases_of(name)[0].choices[0]])
def test_scores_are_those_of_transformers(name: str, answers: Answers) -> None:
    for case in cases_of(name):
        choices = said(answers, case).choices
        got = [choices[i].decoding["score"] for i in range(len(choices))]
        assert got == pytest.approx([c["score"] for c in case.choices], abs=SMOLLM2_LOGPROB), case.prompt


@pytest.mark.parametrize("name", SPECULATION)
def test_drafts_were_accepted_and_rejected(name: str, answers: Answers) -> None:
    details = [said(answers, case).head["usage"]["completion_tokens_details"] for case in cases_of(name)]
    assert sum(d["accepted_prediction_tokens"] for d in details) > 20
    assert sum(d["rejected_prediction_tokens"] for d in details) > 20


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SPECULATION])
def test_a_strategy_says_something_else_than_greedy_decoding(name: str) -> None:
    """Else one that is accepted and not applied would pass."""
    plain = {case["name"]: case["token_ids"] for case in read("smollm2_greedy.json")["prompts"]}
    pairs = [(plain[case.prompt], case.choices[0]["token_ids"]) for case in cases_of(name) if case.prompt in plain]
    assert len([ids for greedy, ids in pairs if greedy[: len(ids)] != ids]) >= 2

"""The library says what the server says: token for token and log-prob for log-prob, for every strategy there is.

The server is asked one by one; the library gets all at once, so that the strategies meet in its batch.
"""

from __future__ import annotations

import json
import math
from typing import Any

import httpx
import pytest

from polydecode import LLM, Choice, Generation, ScoredToken
from server.answer.logprobs import LEAST
from server.translate.table import STRATEGIES
from tests.running_server import RunningServer

PROMPT = "one two three one two three one two"
COMMON: dict[str, Any] = {"max_tokens": 12, "logprobs": 2, "prompt_logprobs": 1, "trace": True, "seed": 7}
BODIES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampling": {"temperature": 0.8, "top_p": 0.9, "n": 3},
    "best_of": {"best_of": 4, "n": 2},
    "beam": {"num_beams": 4, "n": 2, "length_penalty": 0.7},
    "beam_sample": {"num_beams": 3, "do_sample": True, "temperature": 0.7},
    "group_beam": {"num_beams": 4, "num_beam_groups": 2, "n": 2},
    "best_first": {"num_beams": 3, "beam_mode": "best_first"},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dola": {"dola_layers": [0, 1], "temperature": 0},
    "guided": {"guidance_scale": 1.5, "negative_prompt": "four", "temperature": 0},
    "kl_guided": {"kl_guided": {"prompt": "four"}},
    "entropix": {"entropix": {}},
    "cot_decoding": {"cot_decoding": {"k": 4}, "n": 2},
    "sed": {"sed": {"k": 2, "max_rollout": 4}},
    "prompt_lookup": {"prompt_lookup_num_tokens": 4, "temperature": 0},
    "context_aware": {"context_aware": {"prompt": "four"}},
    "pmi": {"pmi": {"prompt": "four"}, "temperature": 0},
    "contrastive_decoding": {"contrastive_decoding": {"amateur": "worn"}},
    "dexperts": {"dexperts": {"expert": "worn", "anti_expert": "draft", "alpha": 2}, "temperature": 0},
    "ensemble": {"ensemble": {"models": ["worn"]}},
    "assisted": {"speculative": True, "num_assistant_tokens": 3, "temperature": 0},
}
STEPS: dict[str, dict[str, Any]] = {
    "a form": {"structured": {"regex": "[a-z ]{5,9}"}, "temperature": 0},
    "a stop": {"stop": ["e"], "num_beams": 3, "include_stop_str_in_output": True},
    "an echo": {"echo": True, "repetition_penalty": 1.3, "temperature": 0},
    "masks": {"bad_words": ["one"], "logit_bias": {"5": 9.0}, "min_tokens": 4},
}
CASES = BODIES | STEPS


def test_every_strategy_of_the_catalogue_is_compared() -> None:
    assert set(BODIES) == {strategy.name for strategy in STRATEGIES}


def asked(name: str) -> dict[str, Any]:
    return COMMON | CASES[name]


@pytest.fixture(scope="module")
def said(llm: LLM) -> dict[str, Generation]:
    return dict(zip(CASES, llm.generate([PROMPT] * len(CASES), [asked(name) for name in CASES]), strict=True))


def post(server: RunningServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST)


def listed(choice: Choice) -> dict[str, Any]:
    """A choice as /v1/completions writes it."""
    scored = choice.logprobs or ()
    return {
        "text": choice.text,
        "token_ids": list(choice.token_ids),
        "finish_reason": choice.finish_reason,
        "tokens": [each.token for each in scored],
        "logprobs": [finite(each.logprob) for each in scored],
        "top": [alternatives(each) for each in scored],
        "decoding": ({} if choice.score is None else {"score": choice.score}) | dict(choice.figures),
    }


def alternatives(token: ScoredToken) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    pairs = [*((other.token, other.logprob) for other in token.top), (token.token, token.logprob)]
    return {name: max(logprob, LEAST) for name, logprob in reversed(pairs)}


def as_listed(choice: dict[str, Any]) -> dict[str, Any]:
    logprobs = choice["logprobs"]
    return {
        "text": choice["text"],
        "token_ids": choice["token_ids"],
        "finish_reason": choice["finish_reason"],
        "tokens": logprobs["tokens"],
        "logprobs": logprobs["token_logprobs"],
        "top": logprobs["top_logprobs"],
        "decoding": choice.get("decoding", {}),
    }


@pytest.mark.parametrize("name", CASES)
def test_a_completion_is_the_servers(name: str, said: dict[str, Generation], server: RunningServer) -> None:
    answer = post(server, "/v1/completions", {"prompt": PROMPT, "return_token_ids": True, **asked(name)})
    own = said[name]
    assert [listed(choice) for choice in own.choices] == [as_listed(choice) for choice in answer["choices"]]
    assert own.strategy == answer["decoding"]["strategy"]
    assert json.loads(json.dumps(own.effective)) == answer["decoding"]["effective"]
    steps = [{"step": each.step, "kind": each.kind, "values": dict(each.values)} for each in own.trace]
    assert json.loads(json.dumps(steps)) == answer["decoding"].get("trace", [])
    assert (own.usage.prompt, own.usage.completion) == (
        answer["usage"]["prompt_tokens"],
        answer["usage"]["completion_tokens"],
    )
    assert own.prompt_logprobs is not None
    shown = answer["choices"][0]["prompt_logprobs"]
    for token, entry in zip(own.prompt_logprobs[1:], shown[1:], strict=True):
        assert entry[str(token.token_id)]["logprob"] == token.logprob


def test_the_choices_are_worth_comparing(said: dict[str, Generation]) -> None:
    """Random weights might end every answer at once, or make all strategies say the same."""
    assert len({generation.token_ids for name, generation in said.items() if name in BODIES}) > 8
    assert all(math.isfinite(each.cumulative_logprob or 0) for own in said.values() for each in own.choices)


@pytest.mark.parametrize("name", ["greedy", "sampling", "beam", "cot_decoding"])
def test_a_chat_is_the_servers(name: str, llm: LLM, server: RunningServer) -> None:
    messages = [{"role": "user", "content": "one two"}]
    body = {"max_tokens": 8, "seed": 3, "logprobs": True, "top_logprobs": 1, **BODIES[name]}
    own = llm.chat(messages, body)
    answer = post(server, "/v1/chat/completions", {"messages": messages, "return_token_ids": True, **body})
    for choice, other in zip(own.choices, answer["choices"], strict=True):
        assert choice.text == other["message"]["content"]
        assert list(choice.token_ids) == other["token_ids"]
        assert [finite(each.logprob) for each in choice.logprobs or ()] == [
            each["logprob"] for each in other["logprobs"]["content"]
        ]


def test_an_embedding_is_the_servers(llm: LLM, server: RunningServer) -> None:
    answer = post(server, "/v1/embeddings", {"input": ["one", "two three"]})
    own = llm.embed(["one", "two three"])
    assert [list(each.vector) for each in own] == [each["embedding"] for each in answer["data"]]


def test_scores_are_the_servers(llm: LLM, server: RunningServer) -> None:
    body = {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = post(server, "/v1/completions", body)
    own = llm.score(PROMPT, top_logprobs=1)
    assert list(own.logprobs) == answer["choices"][0]["logprobs"]["token_logprobs"]
    assert own.total == sum(lp for lp in own.logprobs if lp is not None)


@pytest.mark.parametrize(
    "body",
    [
        {"num_beams": 4, "temperature": 0.5},
        {"temperatur": 1},
        {"top_p": 2},
        {"max_tokens": 100_000},
        {"sed": {"k": 1}},
        {"structured": {"regex": "("}},
        {"structured": {"grammar": "start: nothing"}},
        {"decoder_prompt": "x"},
        {"stop": [""]},
        {"cot_decoding": {"k": 500}},
    ],
    ids=str,
)
def test_a_refusal_is_the_servers(body: dict[str, Any], llm: LLM, server: RunningServer) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "one", **body}, timeout=60)
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - what it says is compared
        llm.generate("one", **body)
    error = answer.json()["error"]
    own = refused.value
    assert (str(own), getattr(own, "param", None), getattr(own, "code", None)) == (
        error["message"],
        error["param"],
        error["code"],
    )

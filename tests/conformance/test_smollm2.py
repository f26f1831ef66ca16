"""The real model over real HTTP: token-identical with transformers, alone and beside sixteen other streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.decoding.rounding_error import SMOLLM2_LOGPROB
from tests.running_server import RunningServer

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "smollm2_greedy.json").read_text(encoding="utf-8"))
NUM_STREAMS = 16
PARALLEL = 10  # in two waves: some join and leave while others are amid their answers


@asynccontextmanager
async def client(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as http:
        yield http


async def complete(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    answer = await http.post("/v1/completions", json={"temperature": 0, "return_token_ids": True, **body})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def endless_stream(http: httpx.AsyncClient, number: int, started: asyncio.Event) -> None:
    """A neighbour: hot sampling with parameters of its own, until it is cut off."""
    body = {
        "prompt": f"Neighbour {number} tells a story about " + "dogs and cats " * number,
        "max_tokens": 2000,
        "ignore_eos": True,
        "stream": True,
        "temperature": 0.5 + number / 10,
        "top_k": number * 3,
        "repetition_penalty": 1.0 + number / 50,
        "seed": number,
        "n": 1 + number % 2,
    }
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200
        async for _ in answer.aiter_lines():
            started.set()


async def assert_golden(http: httpx.AsyncClient, case: dict[str, Any], gate: asyncio.Semaphore) -> None:
    async with gate:
        answer = await complete(http, prompt=case["prompt_token_ids"], max_tokens=len(case["token_ids"]), logprobs=0)
    choice = answer["choices"][0]
    assert choice["token_ids"] == case["token_ids"], case["name"]
    assert choice["finish_reason"] == case["finish_reason"]
    shown = choice["logprobs"]["token_logprobs"]
    assert shown == pytest.approx(case["logprobs"][: len(shown)], abs=SMOLLM2_LOGPROB)


@pytest.mark.slow
async def test_20_prompts_are_token_identical_while_16_streams_run(smol_server: RunningServer) -> None:
    async with client(smol_server) as http:
        started = [asyncio.Event() for _ in range(NUM_STREAMS)]
        streams = [asyncio.create_task(endless_stream(http, i, started[i])) for i in range(NUM_STREAMS)]
        await asyncio.gather(*(event.wait() for event in started))
        gate = asyncio.Semaphore(PARALLEL)
        await asyncio.gather(*(assert_golden(http, case, gate) for case in GOLDEN["prompts"]))
        assert not [stream for stream in streams if stream.done()]
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        await assert_idle(http)


async def assert_idle(http: httpx.AsyncClient) -> None:
    """Streams cut off by their readers must be gone, with their rows and pages, within seconds."""
    for _ in range(100):
        text = (await http.get("/metrics")).text
        values = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line[:1] not in ("#", "")}
        running = [
            v for k, v in values.items() if k.startswith(("vllm:num_requests_running", "polydecode_kv_pages_used"))
        ]
        if len(running) == 2 and not any(running):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not idle: {running}")


async def test_text_prompts_give_the_golden_text(smol_server: RunningServer) -> None:
    cases = [case for case in GOLDEN["prompts"] if case["messages"] is None][:4]
    async with client(smol_server) as http:
        for case in cases:
            answer = await complete(http, prompt=case["prompt"], max_tokens=len(case["token_ids"]))
            assert answer["choices"][0]["token_ids"] == case["token_ids"]
            assert answer["choices"][0]["text"] == case["text"]


async def test_chats_give_the_golden_tokens(smol_server: RunningServer) -> None:
    cases = [case for case in GOLDEN["prompts"] if case["messages"]][:3]
    async with client(smol_server) as http:
        for case in cases:
            body = {"messages": case["messages"], "max_tokens": len(case["token_ids"]), "temperature": 0}
            answer = await http.post("/v1/chat/completions", json=body | {"return_token_ids": True})
            choice = answer.json()["choices"][0]
            assert choice["token_ids"] == case["token_ids"]
            assert choice["finish_reason"] == case["finish_reason"]


async def test_echo_with_max_tokens_0_scores_the_prompt(smol_server: RunningServer) -> None:
    async with client(smol_server) as http:
        for case in GOLDEN["prompt_scores"]:
            answer = await complete(http, prompt=case["prompt_token_ids"], max_tokens=0, echo=True, logprobs=1)
            scores = answer["choices"][0]["logprobs"]["token_logprobs"]
            assert scores[0] is None
            assert scores[1:] == pytest.approx(case["prompt_logprobs"][1:], abs=SMOLLM2_LOGPROB)
            assert answer["usage"]["completion_tokens"] == 0


async def test_a_seed_reproduces_and_a_stream_says_what_the_plain_answer_says(smol_server: RunningServer) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 1.1, "top_p": 0.9, "seed": 5, "n": 3}
    async with client(smol_server) as http:
        first, again = await complete(http, **body), await complete(http, **body)
        texts: dict[int, str] = {}
        async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line.removeprefix("data: "))["choices"]:
                        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert first["choices"] == again["choices"]
    assert [texts[i] for i in range(3)] == [c["text"] for c in first["choices"]]
    assert len(set(texts.values())) == 3


async def test_a_stop_string_ends_the_row_and_never_shows(smol_server: RunningServer) -> None:
    case = GOLDEN["prompts"][0]
    stop = case["text"][5:9]
    async with client(smol_server) as http:
        answer = await complete(http, prompt=case["prompt_token_ids"], max_tokens=48, stop=[stop])
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == case["text"][: case["text"].index(stop)]
    assert choice["token_ids"] == case["token_ids"][: len(choice["token_ids"])]
    assert answer["decoding"]["computed_tokens"] < len(case["prompt_token_ids"]) + 48


async def test_best_of_returns_the_best_of_its_samples(smol_server: RunningServer) -> None:
    body = {"prompt": "The sea is", "max_tokens": 12, "temperature": 1.0, "seed": 3, "logprobs": 0}
    async with client(smol_server) as http:
        samples = (await complete(http, **body, n=5))["choices"]
        (best,) = (await complete(http, **body, best_of=5))["choices"]
    means = [sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"]) for c in samples]
    assert best["token_ids"] == samples[means.index(max(means))]["token_ids"]
    assert best["decoding"]["score"] == pytest.approx(max(means), rel=1e-12)  # the same numbers, added up in float64

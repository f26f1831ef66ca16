"""One request over a socket, told or streamed, and all that has to be the same whatever runs beside it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

Body = Mapping[str, Any]

IDLE_GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "polydecode_kv_pages_used")


@dataclass
class Choice:
    """What one choice said. decoding: its score and the like; a stream says that with the last chunk."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[dict[str, float]] = field(default_factory=list)
    finish_reason: str | None = None
    decoding: dict[str, Any] = field(default_factory=dict)

    def take(self, piece: dict[str, Any]) -> None:
        scored = piece["logprobs"] or {"token_logprobs": [], "top_logprobs": []}
        self.text += piece["text"]
        self.token_ids += piece["token_ids"]
        self.logprobs += scored["token_logprobs"]
        self.top += scored["top_logprobs"]
        self.finish_reason = piece["finish_reason"] or self.finish_reason
        self.decoding |= piece.get("decoding", {})


@dataclass
class Said:
    """The choices of one answer; head: the other top-level fields, of a stream those of its last chunk."""

    choices: dict[int, Choice] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)

    def take(self, answer: dict[str, Any]) -> None:
        for piece in answer.pop("choices"):
            self.choices.setdefault(piece["index"], Choice()).take(piece)
        self.head |= answer


@asynccontextmanager
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=httpx.Limits(max_connections=None)) as http:
        yield http


async def complete(http: httpx.AsyncClient, body: Body) -> Said:
    answer = await http.post("/v1/completions", json={**body, "return_token_ids": True})
    assert answer.status_code == 200, f"{answer.text} to {body}"
    said = Said()
    said.take(answer.json())
    return said


async def stream(http: httpx.AsyncClient, body: Body, most_chunks: int | None = None) -> Said:
    """The answer put together from its chunks; after `most_chunks` the connection is closed instead."""
    said, num_chunks = Said(), 0
    options = {"return_token_ids": True, "stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", "/v1/completions", json={**body, **options}) as answer:
        assert answer.status_code == 200, f"{await answer.aread()!r} to {body}"
        async for line in answer.aiter_lines():
            if line == "data: [DONE]" or num_chunks == most_chunks:
                return said
            if line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, f"{chunk} to {body}"
                said.take(chunk)
                num_chunks += 1
    raise AssertionError(f"a stream without [DONE]: {body}")


async def metrics(http: httpx.AsyncClient) -> dict[str, float]:
    """Series -> value, labels summed away."""
    values: dict[str, float] = {}
    for line in (await http.get("/metrics")).text.splitlines():
        if line[:1] not in ("#", ""):
            name, _, value = line.rpartition(" ")
            series = name.partition("{")[0]
            values[series] = values.get(series, 0.0) + float(value)
    return values


async def assert_idle(http: httpx.AsyncClient) -> None:
    """What readers cut off must be gone, with its rows and pages, within seconds."""
    for _ in range(100):
        values = await metrics(http)
        busy = {gauge: values[gauge] for gauge in IDLE_GAUGES if values[gauge]}
        if not busy:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"not idle: {busy}")

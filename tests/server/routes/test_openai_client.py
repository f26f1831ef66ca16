"""The real OpenAI SDK, strict about what it gets, against a real server on a real socket (the engine alone is fake)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import openai
import pytest
import uvicorn
from openai.types import CompletionUsage

from decoding.contract.frames import Chunk, Finished, Output, TraceEvent
from server.errors import ApiError
from server.served import Served
from tests.server.fake_engine import FakeBatcher, make_app, saying
from tests.server.world import SECONDS

MESSAGES = [{"role": "user", "content": "hello"}]


class QuietServer(uvicorn.Server):
    """Leaves signals alone: asyncio has its own handler for as long as a fixture runs, which uvicorn would put back."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def running(batcher: FakeBatcher) -> AsyncIterator[str]:
    """The address of a server over this batcher."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(batcher), log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    server = QuietServer(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    await task


@pytest.fixture
async def url(batcher: FakeBatcher) -> AsyncIterator[str]:
    async with running(batcher) as url:
        yield url


@pytest.fixture
async def sdk(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
async def lax(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_plain_answers_pass_the_strict_validation(sdk: openai.AsyncOpenAI) -> None:
    completion = await sdk.completions.create(model="tiny", prompt="the dog", logprobs=2, n=2, max_tokens=40, seed=1)
    assert [choice.text for choice in completion.choices] == ["Hello world"] * 2
    chat = await sdk.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        logprobs=True,
        top_logprobs=2,
        extra_body={"top_k": 3, "return_token_ids": True},
    )
    assert chat.choices[0].message.content == "Hello world"
    assert chat.choices[0].finish_reason == "stop"
    assert isinstance(chat.usage, CompletionUsage)
    assert chat.model_extra is not None
    assert chat.model_extra["decoding"]["effective"]["top_k"] == 3


async def test_a_strategy_with_figures_and_a_trace_passes_the_strict_validation(
    sdk: openai.AsyncOpenAI, batcher: FakeBatcher, served: Served
) -> None:
    said = Chunk(0, served.tokenizer.encode("Hi"), finish_reason="stop", score=-1.0, figures={"cot_confidence": 0.5})
    batcher.script = lambda _: [
        Output(0, trace=(TraceEvent(0, "branches", {"k": 10}),)),
        Output(0, (said,), finished=Finished(0, 9, 0.0, 0.0, 0.0, 0, drafted=3, accepted=2)),
    ]
    extra = {"cot_decoding": {"k": 4}, "trace": True, "pause_tokens": {"text": ".", "count": 2}}
    chat = await sdk.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=extra)
    assert chat.model_extra is not None
    assert chat.model_extra["decoding"]["trace"] == [{"step": 0, "kind": "branches", "values": {"k": 10}}]
    assert chat.choices[0].model_extra == {"decoding": {"score": -1.0, "cot_confidence": 0.5}}
    assert chat.usage is not None
    assert chat.usage.completion_tokens_details is not None
    assert chat.usage.completion_tokens_details.accepted_prediction_tokens == 2
    stream = await sdk.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, extra_body=extra)
    assert [len(chunk.choices) async for chunk in stream] == [0, 1, 1]


async def test_streams_pass_the_strict_validation(sdk: openai.AsyncOpenAI) -> None:
    chunks = [
        chunk
        async for chunk in await sdk.chat.completions.create(
            model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, logprobs=True
        )
    ]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello world"
    assert chunks[-1].usage is not None


async def test_completion_streams_work_with_the_lax_validation(lax: openai.AsyncOpenAI) -> None:
    """The SDK's type has no null finish_reason, which OpenAI's own completion chunks bear until the last."""
    text = ""
    async for piece in await lax.completions.create(model="tiny", prompt="a", stream=True, max_tokens=40):
        text += piece.choices[0].text
    assert text == "Hello world"


async def test_the_stream_helper_gathers_an_answer(sdk: openai.AsyncOpenAI) -> None:
    async with sdk.chat.completions.stream(model="tiny", messages=MESSAGES) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello world"


async def test_the_sync_client_works(url: str) -> None:
    def talk() -> tuple[str, str | None]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", _strict_response_validation=True) as client:
            names = [model.id for model in client.models.list()]
            assert client.models.retrieve("alias").id == "alias"
            return names[0], client.chat.completions.create(model="tiny", messages=MESSAGES).choices[0].message.content

    assert await asyncio.to_thread(talk) == ("tiny", "Hello world")


async def test_the_raw_response_shows_headers(sdk: openai.AsyncOpenAI) -> None:
    raw = await sdk.completions.with_raw_response.create(model="tiny", prompt="a", user="me")
    assert raw.headers["X-Ignored-Params"] == "user"
    assert raw.parse().choices[0].text == "Hello world"


async def test_errors_arrive_as_the_sdk_s_exceptions(sdk: openai.AsyncOpenAI, batcher: FakeBatcher) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await sdk.completions.create(model="tiny", prompt="a", temperature=11)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.completions.create(model="other", prompt="a")
    assert missing.value.code == "model_not_found"
    batcher.refusal = ApiError(429, "full", retry_after=1)
    with pytest.raises(openai.RateLimitError):
        await sdk.completions.create(model="tiny", prompt="a")


async def test_an_error_inside_a_stream_is_raised_by_the_sdk(
    lax: openai.AsyncOpenAI, batcher: FakeBatcher, served: Served
) -> None:
    ids = served.tokenizer.encode("ab")
    batcher.script = lambda _: [Output(0, (Chunk(0, ids),)), ApiError(503, "the worker died", code="worker_died")]
    with pytest.raises(openai.APIError, match="the worker died"):
        async for _ in await lax.completions.create(model="tiny", prompt="a", stream=True):
            pass


@pytest.mark.parametrize("streams", [True, False])
async def test_closing_the_socket_cancels_the_ticket(
    url: str, batcher: FakeBatcher, served: Served, streams: bool
) -> None:
    never, begun = asyncio.Event(), saying(served, "a long story")
    batcher.script = lambda request: [*list(begun(request))[:3], never]
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{url}/v1/completions", json={"prompt": "a", "stream": streams}, timeout=0.3)
    await asyncio.wait_for(batcher.cancelled.wait(), SECONDS)

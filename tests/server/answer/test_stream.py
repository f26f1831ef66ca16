"""Server-sent events: what they say, how they end, and that they say what the plain answer says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from sse_starlette.sse import AppStatus

from decoding.contract.frames import Chunk, Output
from server.errors import ApiError
from server.served import Served
from server.settings.limits import Limits
from tests.server.fake_engine import FakeBatcher, make_app, saying
from tests.server.world import SECONDS

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def events_of(response: httpx.Response) -> list[Any]:
    """The data of each event, parsed but for [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("\n\n")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n")[:-1]]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def stream(client: httpx.AsyncClient, url: str = COMPLETIONS, **fields: Any) -> list[Any]:
    body = {"messages": HELLO} if url == CHAT else {"prompt": "the dog"}
    response = await client.post(url, json={**body, "stream": True, **fields})
    assert response.status_code == 200, response.text
    return events_of(response)


def texts(events: list[Any], choices: int = 1) -> list[str]:
    said = [""] * choices
    for event in events[:-1]:
        for choice in event["choices"]:
            said[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content", "")
    return said


async def test_a_stream_ends_with_its_finish_reason_and_done(client: httpx.AsyncClient) -> None:
    events = await stream(client)
    assert events[-1] == "[DONE]"
    assert texts(events) == ["Hello world"]
    reasons = [event["choices"][0]["finish_reason"] for event in events[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert {(event["id"], event["created"], event["model"], event["object"]) for event in events[:-1]} == {
        (events[0]["id"], events[0]["created"], "tiny", "text_completion")
    }


async def test_only_the_first_chunk_says_what_runs(client: httpx.AsyncClient) -> None:
    for url in (COMPLETIONS, CHAT):
        events = await stream(client, url, seed=3, max_tokens=9, temperature=0)
        said = {"strategy": "greedy", "effective": {"temperature": 0.0, "max_tokens": 9, "seed": 3}}
        assert events[0]["decoding"] == said
        assert all("decoding" not in event for event in events[1:-1])


async def test_a_chat_stream_begins_with_the_role(client: httpx.AsyncClient) -> None:
    events = await stream(client, CHAT)
    assert events[0]["object"] == "chat.completion.chunk"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in event["choices"][0]["delta"] for event in events[1:-1])
    assert events[-2]["choices"][0] | {"decoding": 0} == {
        "index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop", "decoding": 0,
    }  # fmt: skip


async def test_usage_comes_in_a_last_chunk_without_choices(client: httpx.AsyncClient) -> None:
    plain = (await client.post(COMPLETIONS, json={"prompt": "the dog"})).json()
    events = await stream(client, stream_options={"include_usage": True})
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == plain["usage"]
    assert events[-2]["decoding"]["computed_tokens"] == 7
    assert all(event["usage"] is None for event in events[:-2])


async def test_usage_can_run_along(client: httpx.AsyncClient) -> None:
    events = await stream(client, CHAT, stream_options={"include_usage": True, "continuous_usage_stats": True})
    counts = [event["usage"]["completion_tokens"] for event in events[:-1]]
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2] == max(counts)


async def test_without_the_option_there_is_no_usage_at_all(client: httpx.AsyncClient) -> None:
    assert all("usage" not in event for event in (await stream(client))[:-1])


@pytest.mark.parametrize("url", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("per_chunk", [1, 3])
async def test_a_stream_says_what_the_plain_answer_says(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served, url: str, per_chunk: int
) -> None:
    batcher.script = saying(served, "日本 the 🙂 dog stops here", "ünï", per_chunk=per_chunk)
    chat = url == CHAT
    fields: dict[str, Any] = {
        "n": 3, "stop": ["op", "stops"], "logprobs": True if chat else 1, "return_token_ids": True, "max_tokens": 60,
        "prompt_logprobs": 0, "seed": 1, **({} if chat else {"echo": True}),
    }  # fmt: skip
    body = {"messages": HELLO} if chat else {"prompt": "a dog"}
    plain = (await client.post(url, json={**body, **fields})).json()
    events = await stream(client, url, **body, **fields)
    streamed = [joined_choice([c for e in events[:-1] for c in e["choices"] if c["index"] == i]) for i in range(3)]
    for choice in plain["choices"]:
        wanted = {
            "text": choice["message"]["content"] if chat else choice["text"],
            "finish_reason": choice["finish_reason"],
            "token_ids": choice["token_ids"],
            "logprobs": choice["logprobs"]["content"] if chat else choice["logprobs"]["tokens"],
            "offsets": [] if chat else choice["logprobs"]["text_offset"],
            "decoding": choice["decoding"],
        }
        assert streamed[choice["index"]] == wanted
    holder = events[0] if chat else events[0]["choices"][0]
    assert holder["prompt_logprobs"] == (plain if chat else plain["choices"][0])["prompt_logprobs"]


def joined_choice(parts: list[dict[str, Any]]) -> dict[str, Any]:
    scored = [part["logprobs"] for part in parts if part["logprobs"] is not None]
    return {
        "text": "".join(part["text"] if "text" in part else part["delta"].get("content", "") for part in parts),
        "finish_reason": parts[-1]["finish_reason"],
        "token_ids": [i for part in parts for i in part.get("token_ids", [])],
        "logprobs": [token for each in scored for token in each.get("content", each.get("tokens"))],
        "offsets": [offset for each in scored for offset in each.get("text_offset", [])],
        "decoding": parts[-1]["decoding"],
    }


async def test_several_prompts_share_one_stream(client: httpx.AsyncClient) -> None:
    events = await stream(client, prompt=["a", "b", "c"], n=2, echo=True)
    assert texts(events, 6) == [prompt + "Hello world" for prompt in "aabbcc"]
    assert events.count("[DONE]") == 1


async def test_an_error_before_the_first_token_is_a_status(client: httpx.AsyncClient, batcher: FakeBatcher) -> None:
    batcher.script = lambda _: [ApiError(503, "waited too long", code="queue_timeout", retry_after=1)]
    response = await client.post(COMPLETIONS, json={"prompt": "a", "stream": True})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "queue_timeout"
    assert batcher.tickets[0].num_cancels > 0


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (ApiError(503, "the worker died", code="worker_died"), ("unavailable_error", "worker_died")),
        (ZeroDivisionError("/secret"), ("internal_error", "internal_error")),
    ],
)
async def test_an_error_later_is_the_last_event_and_nothing_is_done(
    client: httpx.AsyncClient, batcher: FakeBatcher, served: Served, failure: Exception, kind: tuple[str, str]
) -> None:
    ids = served.tokenizer.encode("ab")
    batcher.script = lambda _: [Output(0, (Chunk(0, ids[:1]),)), failure]
    events = await stream(client)
    assert len(events) == 2
    assert (events[1]["error"]["type"], events[1]["error"]["code"]) == kind
    assert "secret" not in json.dumps(events)


async def test_a_failing_prompt_fails_the_request_and_frees_the_others(
    client: httpx.AsyncClient, batcher: FakeBatcher
) -> None:
    never = asyncio.Event()
    scripts = iter([[never], [ApiError(504, "too late")], [never]])
    batcher.script = lambda _: next(scripts)
    response = await client.post(COMPLETIONS, json={"prompt": ["a", "b", "c"]})
    assert response.status_code == 504
    assert all(ticket.num_cancels > 0 for ticket in batcher.tickets)


class Caller:
    """A bare ASGI client that can go away, or stop reading."""

    def __init__(
        self, batcher: FakeBatcher, body: dict[str, Any], reads: int | None = None, limits: Limits | None = None
    ) -> None:
        self.sent: list[dict[str, Any]] = []
        self.left = asyncio.Event()
        self.has_headers = asyncio.Event()
        self._reads = reads
        self._requests = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        scope = {
            "type": "http", "method": "POST", "path": COMPLETIONS, "raw_path": COMPLETIONS.encode(),
            "query_string": b"", "root_path": "",
            "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"}, "server": ("test", 80), "client": ("test", 1),
        }  # fmt: skip
        self.task = asyncio.create_task(make_app(batcher, limits)(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._requests:
            return self._requests.pop()
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self.has_headers.set()
        if self._reads is not None and len(self.sent) > self._reads:
            await asyncio.Event().wait()


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
@pytest.mark.parametrize("has_begun", [True, False])
async def test_a_client_that_leaves_frees_its_tickets_at_once(
    batcher: FakeBatcher, served: Served, streams: bool, prompt: Any, has_begun: bool
) -> None:
    begun = [Output(0, (Chunk(0, served.tokenizer.encode("a")),))] if has_begun else []
    waiting = asyncio.Event()

    class Marked(asyncio.Event):
        async def wait(self) -> Any:
            waiting.set()
            return await super().wait()

    batcher.script = lambda _: [*begun, Marked()]
    caller = Caller(batcher, {"prompt": prompt, "stream": streams})
    await asyncio.wait_for(waiting.wait(), SECONDS)
    caller.left.set()
    await asyncio.wait_for(caller.task, SECONDS)
    assert all(ticket.num_cancels > 0 for ticket in batcher.tickets)
    assert len(batcher.tickets) == (1 if prompt == "a" else 2)
    assert others() == set()


def others() -> set[str]:
    """Tasks left behind; sse-starlette keeps one watcher a loop."""
    names = {str(task.get_coro()) for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    return {name for name in names if "_shutdown_watcher" not in name}


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
async def test_a_client_that_leaves_before_the_headers_frees_its_tickets(batcher: FakeBatcher, prompt: Any) -> None:
    caller = Caller(batcher, {"prompt": prompt, "stream": True}, reads=0)
    await asyncio.wait_for(caller.has_headers.wait(), SECONDS)
    caller.left.set()
    await asyncio.wait_for(caller.task, SECONDS)
    assert [message["type"] for message in caller.sent] == ["http.response.start"]
    assert all(ticket.num_cancels > 0 for ticket in batcher.tickets)
    assert others() == set()


async def test_headers_do_not_wait_for_ever_for_the_first_event(
    batcher: FakeBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.answer.stream.FIRST_EVENT_SECONDS", 0.01)
    begun = asyncio.Event()
    batcher.script = lambda _: [begun, ApiError(503, "waited too long", code="queue_timeout")]
    caller = Caller(batcher, {"prompt": "a", "stream": True})
    await asyncio.wait_for(caller.has_headers.wait(), SECONDS)
    assert caller.sent[0]["status"] == 200
    begun.set()
    await asyncio.wait_for(caller.task, SECONDS)
    body = b"".join(message["body"] for message in caller.sent[1:])
    assert b"queue_timeout" in body
    assert b"[DONE]" not in body


async def test_a_client_that_stops_reading_is_cut_off(batcher: FakeBatcher) -> None:
    caller = Caller(batcher, {"prompt": "a", "stream": True}, reads=2, limits=Limits(send_timeout=0.05))
    await asyncio.wait_for(caller.task, SECONDS)
    assert len(caller.sent) == 3
    assert batcher.tickets[0].num_cancels > 0


async def test_sigterm_does_not_cut_streams(client: httpx.AsyncClient) -> None:
    """sse-starlette ends all streams when uvicorn's exit flag is up, unless told not to; the batcher drains instead."""
    AppStatus.enable_automatic_graceful_drain = True
    await stream(client)
    assert AppStatus.enable_automatic_graceful_drain is False

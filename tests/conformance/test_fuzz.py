"""Fuzzing: the OpenAPI schema by schemathesis, bodies by hypothesis, the port byte by byte; beside a victim, all of it.

Seeds are fixed, so that a failure comes again.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from server.wire.requests import ChatRequest, CompletionRequest
from tests.conformance.connection import connected, post
from tests.conformance.servers.narrow_server import goldens_of, narrow_server
from tests.conformance.victim import Golden, beside_a_victim
from tests.running_server import RunningServer

URL, CHAT = "/v1/completions", "/v1/chat/completions"
NUM_BODIES = 120  # of each endpoint
NUM_CASES = 15  # of each operation
NUM_CONNECTIONS = 400
SET_APART = {"max_tokens", "timeout", "model"}  # a length is drawn by itself; the others may rightly be a 504 or a 404


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smol_directory: Path) -> Iterator[RunningServer]:
    flags = ("--docs", "--max-queue", "256")
    with narrow_server(tmp_path_factory.mktemp("model"), smol_directory, *flags) as running:
        yield running


@pytest.fixture(scope="module")
def goldens(server: RunningServer) -> list[Golden]:
    return goldens_of(server)


QUICK = settings(
    max_examples=NUM_CASES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)


async def test_what_the_schema_allows_is_answered_as_the_schema_says(
    server: RunningServer, goldens: list[Golden]
) -> None:
    async with beside_a_victim(server, goldens):
        await asyncio.to_thread(call_every_operation, server)


def call_every_operation(server: RunningServer) -> None:
    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()

        @seed(20)
        @QUICK
        @given(operation.as_strategy())
        def call(case: Any) -> None:
            case.body = shortened(case.path, case.body)
            case.call_and_validate(checks=checks, timeout=60)

        call()


ONE_TOKEN: dict[str, dict[str, Any]] = {
    URL: {"max_tokens": 1, "max_completion_tokens": None},
    CHAT: {"max_tokens": 1, "max_completion_tokens": None},
    "/v1/responses": {"max_output_tokens": 1},
}


def shortened(path: str, body: Any) -> Any:
    """Decoding costs seconds here; its length is not what the schema is about."""
    return body | ONE_TOKEN.get(path, {}) if isinstance(body, dict) else body


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NEARLY = st.integers(-2, 3) | st.floats(0, 2) | st.booleans() | st.none() | st.sampled_from(["", "a", "low", "never"])
PROMPTS = st.sampled_from(["a", "hello you", [5, 6], [[5], [6, 7]], ["a", "b"]]) | JSON
MESSAGES = st.sampled_from([[{"role": "user", "content": "a"}]]) | JSON


LENGTHS = st.sampled_from([2, 2, 2, 1, -1, 1.5, "2", True, [2], 2**40])  # never null: a chat would fill its context


def bodies(wire: type[CompletionRequest] | type[ChatRequest]) -> st.SearchStrategy[dict[str, Any]]:
    """Mostly fields that there are, with values that are nearly right; a prompt that is right half of the time."""
    needed = "prompt" if wire is CompletionRequest else "messages"
    names = st.sampled_from(sorted(wire.model_fields.keys() - {needed, *SET_APART})) | st.text(max_size=9)
    rest = st.dictionaries(names, NEARLY | JSON, max_size=4)
    prompt = PROMPTS if wire is CompletionRequest else MESSAGES
    return st.tuples(rest, prompt, LENGTHS).map(lambda it: it[0] | {needed: it[1], "max_tokens": it[2]})


@pytest.mark.parametrize(("url", "wire"), [(URL, CompletionRequest), (CHAT, ChatRequest)])
async def test_any_body_is_an_answer_or_a_400_that_names_a_field(
    server: RunningServer, goldens: list[Golden], url: str, wire: Any
) -> None:
    async with beside_a_victim(server, goldens):
        await asyncio.to_thread(send_bodies, server, url, wire)


def send_bodies(server: RunningServer, url: str, wire: Any) -> None:
    with httpx.Client(base_url=server.url, timeout=120) as http:

        @seed(21)
        @settings(QUICK, max_examples=NUM_BODIES)
        @given(bodies(wire))
        def send(body: dict[str, Any]) -> None:
            answer = http.post(url, content=json.dumps(body), headers={"content-type": "application/json"})
            check_answer({*body, *wire.model_fields}, answer)

        send()


def check_answer(names: set[str], answer: httpx.Response) -> None:
    """names: of the fields that there are, and of those that were sent."""
    assert answer.status_code in {200, 400}, answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.text.endswith("data: [DONE]\n\n")
        return
    told = json.loads(answer.content.decode("utf-8"), parse_constant=pytest.fail)
    if answer.status_code == 200:
        assert told["choices"]
        return
    error = told["error"]
    assert set(told) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    if error["code"] not in {"invalid_json", "nothing_to_draw", "context_length_exceeded"}:
        assert any(error["param"].startswith(name[:100]) for name in names), error


def garbage(roll: random.Random) -> list[bytes]:
    """The pieces of one connection: odd, broken or hostile, or a sound request that was tampered with."""
    sound = post(URL, {"prompt": [5], "max_tokens": 1}, keep_alive=True)
    chunked = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    kinds = [
        [roll.randbytes(roll.randrange(1, 3000))],
        [b"GET  /health HTTP/1.1\r\n\r\n"], [b"GET /health HTTP/9.9\r\n\r\n"], [b"\r\n" * 50], [b"\0" * 500],
        [b"G\0T /health HTTP/1.1\r\n\r\n"], [b"GET /\xff\xfe%zz%00 HTTP/1.1\r\nHost: x\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\n" + b"".join(b"h%d: v\r\n" % i for i in range(3000)) + b"\r\n"],
        [b"GET /health HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n"],
        [b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\nX\0Y: 1\r\nZ: a\x7f\x01\r\n folded\r\n\r\n"],
        [b"POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}"],
        [b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n{}"],
        [b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"],
        [b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"],
        [chunked + b"zz\r\n{}\r\n0\r\n\r\n"], [chunked + b"-2\r\n{}\r\n0\r\n\r\n"],
        [chunked + b"ffffffffffffffffff\r\n{}"],
        [chunked + b"2;a=" + b"b" * 9000 + b"\r\n{}\r\n0\r\n\r\n"], [chunked + b"2\r\n{}XX0\r\n\r\n"],
        [chunked + b"2\r\n{}\r\n0\r\nTrailer: x\r\n\r\n"], [sound * 20], [sound * 5 + b"garbage"],
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", roll.randbytes(200)],
        [b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03"],
        [b"GET /health HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: A\r\n\r\n"],
        [b"GET /health HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", b"ab"],
    ]  # fmt: skip
    if roll.random() < 0.6:
        return roll.choice(kinds)
    broken = bytearray(sound)
    for _ in range(roll.randrange(1, 6)):
        broken[roll.randrange(len(broken))] = roll.randrange(256)
    cut = roll.randrange(len(broken))
    return [bytes(broken[:cut]), bytes(broken[cut:])]


async def test_any_bytes_leave_the_server_unharmed(server: RunningServer, goldens: list[Golden]) -> None:
    roll = random.Random(22)
    gate = asyncio.Semaphore(40)

    async def attack(pieces: list[bytes], ending: float) -> bytes:
        async with gate, connected(server) as connection:
            await connection.send(*pieces)
            if ending < 0.3:
                connection.reset()
                return b""
            return await connection.read_some() if ending < 0.6 else b""

    async with beside_a_victim(server, goldens) as http:
        attacks = [(garbage(roll), roll.random()) for _ in range(NUM_CONNECTIONS)]
        answers = await asyncio.gather(*(attack(*each) for each in attacks))
        statuses = {int(answer[9:12]) for answer in answers if answer}
        assert all(answer.startswith(b"HTTP/1.") for answer in answers if answer)
        assert statuses <= {100, 200, 400, 404, 405, 413, 415, 431, 503}, statuses
        assert 400 in statuses
        assert (await http.get("/ready")).status_code == 200
    assert "unhandled" not in server.output
    assert "Traceback" not in server.output

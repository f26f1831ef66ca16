"""The promises of the server, one test each, over real sockets and processes, beside a victim whose tokens stay golden.

The numbers are those of `KEPT_BY`, which names for each promise the test that shows it; the common check after every
attack is `victim.py`'s. What cannot be seen from outside is tested in tests/server/ under the names given there.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.conformance.connection import connected, post
from tests.conformance.exchange import complete, metrics, stream
from tests.conformance.servers.narrow_server import goldens_of, narrow_server, tiny_model
from tests.conformance.victim import Golden, beside_a_victim
from tests.running_server import ROOT, RunningServer, clean_environment

KEY = "Key-of-the-test-5f1c"
AUTH = {"Authorization": f"Bearer {KEY}"}
URL = "/v1/completions"
CHAT = "/v1/chat/completions"
MAX_ROWS, MAX_QUEUE = 16, 17
ENDLESS = {"prompt": [5], "max_tokens": 4000, "ignore_eos": True}  # sixteen of them fit the KV cache
SECRET = "Zebra-secret-77"

HERE = "tests/conformance/test_promises.py"
LIFE = "tests/conformance/test_lifecycle.py"
KEPT_BY = {
    1: f"{HERE}::test_01_no_request_harms_the_server",
    2: f"{HERE}::test_02_every_field_is_checked_before_anything_is_queued",
    3: f"{HERE}::test_03_every_size_has_a_limit",
    4: f"{HERE}::test_04_a_request_that_fails_fails_alone",
    5: f"{HERE}::test_05_what_a_client_supplies_is_only_data",
    6: f"{LIFE}::test_6_health_and_ready_answer_and_tell_the_truth_under_full_load",
    7: f"{LIFE}::test_7_a_killed_worker_fails_what_it_ran_and_is_replaced",
    8: f"{LIFE}::test_8_a_signal_drains_what_runs_and_waits_also_for_a_first_process",
    9: f"{LIFE}::test_9_a_busy_worker_that_is_stopped_goes_with_a_parent_that_is_killed",
    10: f"{LIFE}::test_10_weights_that_are_cut_off_are_said_at_once",
    11: f"{HERE}::test_11_a_tenfold_overload_is_refused_at_once_and_the_rest_is_served",
    12: f"{HERE}::test_12_an_expired_request_is_never_run",
    13: f"{HERE}::test_13_a_client_that_leaves_takes_its_work_with_it",
    14: f"{HERE}::test_14_slow_and_silent_clients_are_cut_off",
    15: f"{HERE}::test_15_long_prompts_do_not_starve_short_ones",
    16: f"{HERE}::test_16_500_connections_reset_at_random_points_leave_nothing_behind",
    17: f"{LIFE}::test_17_too_little_memory_fails_its_cause_and_delays_the_rest",
    18: f"{HERE}::test_18_a_stream_ends_in_one_of_two_ways",
    19: f"{HERE}::test_19_usage_says_what_happened_and_a_seed_reproduces_it",
    20: f"{HERE}::test_20_every_route_but_the_probes_needs_the_key",
    21: f"{HERE}::test_21_only_the_http_port_listens",
    22: f"{HERE}::test_22_pickles_and_code_of_a_model_are_not_loaded",
    23: f"{HERE}::test_23_errors_and_logs_give_nothing_away",
    24: f"{HERE}::test_24_a_running_server_writes_no_file",
    25: f"{HERE}::test_25_there_is_no_other_route_and_no_other_origin",
    26: f"{HERE}::test_26_every_promise_has_a_test",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smol_directory: Path) -> Iterator[RunningServer]:
    with narrow_server(tmp_path_factory.mktemp("model"), smol_directory, "--api-key", KEY) as running:
        yield running


@pytest.fixture(scope="module")
def goldens(server: RunningServer) -> list[Golden]:
    return goldens_of(server, AUTH)


@pytest.fixture
def beside(server: RunningServer, goldens: list[Golden]) -> Any:
    def enter(*bears: int) -> AbstractAsyncContextManager[httpx.AsyncClient]:
        return beside_a_victim(server, goldens, bears=bears, headers=AUTH)

    return enter


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """OpenAI's error object, from JSON that is JSON."""
    body = json.loads(answer.content.decode("utf-8"), parse_constant=pytest.fail)
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(error[name] is None or isinstance(error[name], str) for name in error)
    return error


async def refused(http: httpx.AsyncClient, body: Any, status: int = 400, url: str = URL) -> dict[str, Any]:
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = await http.post(url, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, f"{answer.text} to {str(body)[:200]}"
    return error_of(answer)


async def counted(http: httpx.AsyncClient, series: str, *labels: str) -> float:
    """The sum of a series over all labels but those given as name="value"."""
    lines = (await http.get("/metrics")).text.splitlines()
    mine = [line for line in lines if line.startswith(series + "{") and all(label in line for label in labels)]
    return sum(float(line.rpartition(" ")[2]) for line in mine)


async def until_counted(http: httpx.AsyncClient, number: float, series: str, *labels: str) -> None:
    """Seconds are the server's business: its own limits are far below ours."""
    async with asyncio.timeout(120):
        while await counted(http, series, *labels) < number:  # noqa: ASYNC110 - it is another process's condition
            await asyncio.sleep(0.05)


async def hold(http: httpx.AsyncClient, body: dict[str, Any], started: asyncio.Event) -> None:
    """A stream that is read until it is cancelled."""
    async with http.stream("POST", URL, json=body | {"stream": True}) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for _ in answer.aiter_lines():
            started.set()


async def holding(http: httpx.AsyncClient, body: dict[str, Any]) -> asyncio.Task[None]:
    started = asyncio.Event()
    task = asyncio.create_task(hold(http, body, started))
    starting = asyncio.create_task(started.wait())
    await asyncio.wait({task, starting}, timeout=120, return_when=asyncio.FIRST_COMPLETED)
    assert started.is_set(), task
    return task


async def let_go(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


MALFORMED = [
    b"", b"{", b"null", b"[]", b'"x"', b"[" * 100_000, b'{"prompt":' * 5000, b'{"prompt":"a"} x',
    b'{"prompt":[1],"temperature":NaN}', b'{"prompt":[1],"temperature":-Infinity}', b'{"prompt":[1],"top_p":1e400}',
    b'{"prompt":[1],"seed":' + b"9" * 5000 + b"}", b'{"prompt":[1],"n":1,"n":2}', b'{"prompt":"\\ud800"}',
    b'{"prompt":"\xff"}', b'\xef\xbb\xbf{"prompt":"a"}', '{"prompt":"a"}'.encode("utf-16"), b'{"prompt":"a\x00"}',
    b'{"prompt":[1],"logit_bias":{"-1":1}}', b'{"prompt":[1],"logit_bias":{"1":1e999}}', b'{"\xc0\x80":1}',
]  # fmt: skip


async def test_01_no_request_harms_the_server(beside: Any) -> None:
    async with beside() as http:
        for url in (URL, CHAT, "/tokenize", "/detokenize"):
            for body in MALFORMED:
                await refused(http, body, url=url)
        for body in (b'{"prompt":[' + b"[]," * 500_000 + b"[]]}", b'{"prompt":[' + b"1," * 2_000_000 + b"1]}"):
            assert (await refused(http, body, 413))["code"] == "body_too_large"


BAD_VALUES: dict[str, Sequence[Any]] = {
    "prompt": (None, 7, True, {}, [], "", [-1], [49152], [2**70], [1.0], [True], [[1], "a"], [[]]),
    "max_tokens": (-1, "7", True, 2.0, 2**70, [1]),
    "temperature": (-0.1, 10.1, "1", True, []),
    "n": (0, -1, 65, True, "2", 1.0),
    "seed": (-(2**63) - 1, 2**64, 1.5, "1"),
    "top_p": (1.01, -0.01, "1"),
    "top_k": (-2, 2**31, 1.0),
    "logit_bias": ({"-1": 1}, {"49152": 1}, {"x": 1}, {"1": 101}, {"1": True}, [1]),
    "stop": ("", ["a", ""], 5, [5]),
    "stop_token_ids": ([-1], [49152], [True]),
    "allowed_token_ids": ([], [-1], [49152], [1.0]),
    "stream": ("yes", 1),
    "timeout": (0, -1, "1"),
    "num_beams": (0, True, "2"),
    "repetition_penalty": (0, -1, "1"),
    "dola_layers": ([-1], "deep", [10**6]),
    "cot_decoding": ({"k": 0}, {"answer_regex": "("}, {"x": 1}, []),
}


async def test_02_every_field_is_checked_before_anything_is_queued(beside: Any) -> None:
    """What is queued is counted under its strategy, however it ends."""
    async with beside() as http:
        labels = ('strategy="none"', 'outcome="rejected"')
        before = await counted(http, "polydecode_requests_total", *labels)
        cases = [(field, value) for field, values in BAD_VALUES.items() for value in values]
        for field, value in cases:
            error = await refused(http, {"prompt": [1]} | {field: value})
            assert error["type"] == "invalid_request_error"
            assert error["param"].startswith(field)
        assert await counted(http, "polydecode_requests_total", *labels) == before + len(cases)


TOO_MUCH: list[dict[str, Any]] = [
    {"n": 65}, {"best_of": 65}, {"num_beams": 65}, {"max_tokens": 20_000}, {"prompt": [1] * 20_001},
    {"prompt": [[1]] * 257}, {"prompt": [[1]] * 9, "n": 32}, {"stop": ["a"] * 17}, {"stop": "a" * 257},
    {"logit_bias": {str(i): 1 for i in range(1025)}}, {"allowed_token_ids": list(range(8193))},
    {"stop_token_ids": list(range(1025))}, {"logprobs": 21}, {"prompt_logprobs": 21}, {"cache_salt": "x" * 257},
    {"bad_words": ["a"] * 257}, {"negative_prompt": "a" * 65537, "guidance_scale": 2},
    {"cot_decoding": {"answer_regex": "a" * 513}}, {"temprature": 1}, {"x" * 10_000: 1},
]  # fmt: skip


async def test_03_every_size_has_a_limit(server: RunningServer, beside: Any) -> None:
    async with beside(503) as http:
        for fields in TOO_MUCH:
            assert len((await refused(http, {"prompt": [1]} | fields))["message"]) < 300
        messages = [{"role": "user", "content": "a"}] * 2049
        assert (await refused(http, {"messages": messages}, url=CHAT))["param"] == "messages"
        assert (await refused(http, b" " * (8 * 2**20 + 1), 413))["code"] == "body_too_large"
        huge = await http.get("/health", headers={"x": "y" * 40_000})
        assert (huge.status_code, error_of(huge)["type"]) == (431, "invalid_request_error")
        taken = await http.post(URL, json={"prompt": [1], "max_tokens": 1, "user": "u", "store": True})
        assert taken.headers["x-ignored-params"] == "store, user"
        await one_connection_too_many(server)


async def one_connection_too_many(server: RunningServer) -> None:
    """Idle connections up to the limit; they are cut off by the time that headers may take."""
    streams = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(320)]
    answers = await asyncio.gather(*(reader.read(4096) for reader, _ in streams), return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, bytes) and b"too_many_connections" in answer]
    for _, writer in streams:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(120):
        while b" 200 " not in await raw(server, b"GET /health HTTP/1.1\r\n"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_04_a_request_that_fails_fails_alone(beside: Any) -> None:
    """Nothing is left to draw once the only allowed token may not come again; no third beam where two texts match."""
    neighbours = [{"prompt": [9, i], "max_tokens": 40, "seed": i, "n": 2, "ignore_eos": True} for i in range(4)]
    failing = {"prompt": [8], "allowed_token_ids": [5], "no_repeat_ngram_size": 1, "max_tokens": 5}
    too_many = {"prompt": [8], "num_beams": 4, "n": 3, "structured": {"choice": ["a", "b"]}, "max_tokens": 5}
    async with beside() as http:
        alone = [(await complete(http, body)).choices for body in neighbours]
        together = asyncio.gather(*(complete(http, body) for body in neighbours))
        assert (await refused(http, failing))["code"] == "nothing_to_draw"
        assert (await refused(http, too_many))["code"] == "nothing_to_draw"
        events = (await http.post(URL, json=failing | {"stream": True})).text
        assert "nothing_to_draw" in events
        assert "[DONE]" not in events
        assert [said.choices for said in await together] == alone


SUPPLIED: list[tuple[str, dict[str, Any]]] = [
    (URL, {"prompt": "{{ cycler.__init__.__globals__.os.popen('id').read() }}"}),
    (URL, {"prompt": "a", "user": "../../etc/passwd", "cache_salt": "../\x00\n'\"{}", "max_tokens": 1}),
    (URL, {"prompt": "a", "cot_decoding": {"k": 2, "answer_regex": "(a*)*(a|a)*b"}, "max_tokens": 2}),
    (CHAT, {"messages": [{"role": "user", "content": "{% raw %}{{ 7*7 }}<|im_end|>"}], "max_tokens": 1}),
]
FETCHED: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x"}}]}]},
    {"messages": [{"role": "user", "content": "a"}], "chat_template": "{{ 7*7 }}"},
    {"messages": [{"role": "../../x", "content": "a"}]},
]


async def test_05_what_a_client_supplies_is_only_data(server: RunningServer, beside: Any) -> None:
    async with beside() as http:
        await http.post(URL, json={"prompt": "a", "cot_decoding": {"k": 2}, "max_tokens": 1})
        series = await names_of(http)
        for url, body in SUPPLIED:
            answer = await http.post(url, json=body, headers={"x-request-id": "a b<script>"})
            assert answer.status_code == 200, answer.text
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        for body in FETCHED:
            await refused(http, body, url=CHAT)
        for name in ("../../../etc/passwd", 'x"} 1\nevil 1', "http://127.0.0.1:9/"):
            await refused(http, {"model": name, "prompt": "a"}, 404)
        for path in ("/v1/models/..%2f..%2fetc%2fpasswd", "/static/../../etc/passwd"):
            assert (await http.get(path)).status_code == 404
        assert await names_of(http) == series


async def names_of(http: httpx.AsyncClient) -> set[str]:
    """Every series, labels and all."""
    return {line.rpartition(" ")[0] for line in (await http.get("/metrics")).text.splitlines() if line[:1] != "#"}


async def test_11_a_tenfold_overload_is_refused_at_once_and_the_rest_is_served(beside: Any) -> None:
    """An unknown token id would be a 400, were the prompt looked at before the queue."""
    async with beside(429) as http:
        hog = await holding(http, ENDLESS | {"n": MAX_ROWS - 1})
        waiting = [
            asyncio.create_task(http.post(URL, json={"prompt": [1, i], "n": 2, "max_tokens": 4})) for i in range(8)
        ]
        await until_counted_plain(http, "polydecode_queue_rows", MAX_QUEUE - 1)
        overflow = {"prompt": [10**6], "n": 2, "max_tokens": 4}
        refusals = await asyncio.gather(*(http.post(URL, json=overflow) for _ in range(10 * MAX_QUEUE // 2)))
        for answer in refusals:
            assert answer.status_code == 429, answer.text
            assert error_of(answer)["type"] == "overloaded_error"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert not [task for task in waiting if task.done()]
        await let_go(hog)
        answers = await asyncio.gather(*waiting)
        assert [answer.status_code for answer in answers] == [200] * 8
        assert (await http.post(URL, json=overflow)).status_code == 400


async def until_counted_plain(http: httpx.AsyncClient, series: str, number: float) -> None:
    async with asyncio.timeout(120):
        while (await metrics(http))[series] < number:  # noqa: ASYNC110 - it is another process's condition
            await asyncio.sleep(0.05)


async def test_12_an_expired_request_is_never_run(beside: Any) -> None:
    """Behind a batch that is full; what runs has its prompt counted under its strategy."""
    late = {"prompt": [1], "dola_layers": "low", "n": 2, "max_tokens": 4, "timeout": 0.3}
    async with beside() as http:
        hog = await holding(http, ENDLESS | {"n": MAX_ROWS - 1})
        before = await counted(http, "polydecode_prompt_tokens_total", 'strategy="dola"')
        assert (await refused(http, late, 504))["type"] == "timeout_error"
        streamed = await http.post(URL, json=late | {"stream": True})
        assert (streamed.status_code, error_of(streamed)["code"]) == (504, "timeout")
        await let_go(hog)
        running = await http.post(URL, json=ENDLESS | {"timeout": 0.3})
        assert (running.status_code, error_of(running)["code"]) == (504, "timeout")
        await complete(http, {"prompt": [1], "max_tokens": 2})
        assert await counted(http, "polydecode_prompt_tokens_total", 'strategy="dola"') == before


async def test_13_a_client_that_leaves_takes_its_work_with_it(beside: Any) -> None:
    """Streaming and plain, running and queued, one of several branches and prompts."""
    cancelled = ("polydecode_requests_total", 'outcome="cancelled"')
    running = [ENDLESS | {"stream": True, "n": 3}, ENDLESS | {"n": 2}, ENDLESS | {"prompt": [[1], [2], [3]]}]
    queued = [{"prompt": [1], "n": 10, "stream": True}, {"prompt": [2], "n": 6}]
    async with beside() as http:
        before = await counted(http, *cancelled)
        tasks = [asyncio.create_task(http.post(URL, json=body)) for body in running]
        await until_counted_plain(http, "polydecode_live_rows", 8)
        hog = await holding(http, ENDLESS | {"n": 7})
        tasks += [asyncio.create_task(http.post(URL, json=body)) for body in queued]
        await until_counted_plain(http, "polydecode_queue_rows", 16)
        await let_go(*tasks)
        await until_counted(http, before + 5, *cancelled)
        assert not hog.done()
        assert (await metrics(http))["polydecode_queue_rows"] <= 1  # the victim's
        await let_go(hog)


async def test_14_slow_and_silent_clients_are_cut_off(server: RunningServer, beside: Any) -> None:
    async with beside() as http:
        cancelled = await counted(http, "polydecode_requests_total", 'outcome="cancelled"')
        async with connected(server) as slow, connected(server) as stuck, connected(server) as mute:
            head = post(URL, {"prompt": [1]}, AUTH)
            await asyncio.gather(
                slow.send(*(head[i : i + 1] for i in range(25)), pause=0.2),
                stuck.send(head[:-3]),
                mute.send(b"GET /health HTTP/1.1\r\nX: "),
            )
            answers = await asyncio.gather(slow.read_to_the_end(), stuck.read_to_the_end(), mute.read_to_the_end())
        assert answers[0] == b""
        assert b"body_timeout" in answers[1]
        assert answers[2] == b""
        async with connected(server, receive_buffer=4096) as silent, connected(server, receive_buffer=4096) as sipping:
            body = ENDLESS | {"stream": True, "n": 5, "logprobs": 20, "return_token_ids": True}
            await asyncio.gather(silent.send(post(URL, body, AUTH)), sipping.send(post(URL, body, AUTH)))
            sips = asyncio.create_task(sip(sipping))
            await until_counted(http, cancelled + 2, "polydecode_requests_total", 'outcome="cancelled"')
            await let_go(sips)


async def sip(connection: Any) -> None:
    """Reads, but far less than is sent."""
    while await connection.read(16):  # noqa: ASYNC110 - slowness is its point
        await asyncio.sleep(0.1)


async def test_15_long_prompts_do_not_starve_short_ones(beside: Any) -> None:
    """Long ones take turns among themselves; short ones that come later are answered while they still run."""
    long = [{"prompt": [7 + i, *range(100, 15_100)], "max_tokens": 1} for i in range(3)]
    text = "many words and no end " * 5000
    async with beside() as http:
        tasks = [asyncio.create_task(http.post(URL, json=body)) for body in long]
        tasks += [asyncio.create_task(refused(http, {"prompt": text}))]
        await until_counted_plain(http, "vllm:num_requests_running", 3)
        for i in range(3):
            await complete(http, {"prompt": [3, i], "max_tokens": 4})
        assert not all(task.done() for task in tasks[:3])
        for never in ({"max_tokens": 19_999, "n": 12}, {"prompt": [1] * 19_999, "max_tokens": 2}):
            error = await refused(http, ENDLESS | never)
            assert error["code"] == "context_length_exceeded"
        assert [(await task).status_code for task in tasks[:3]] == [200] * 3
        assert (await tasks[3])["code"] == "context_length_exceeded"


NUM_RESETS = 500


async def test_16_500_connections_reset_at_random_points_leave_nothing_behind(
    server: RunningServer, beside: Any
) -> None:
    """A reset may come before, amid and behind request and answer. (Hours of traffic are the soak's.)"""
    roll = random.Random(5)
    gate = asyncio.Semaphore(50)

    async def once() -> None:
        body = {"prompt": [roll.randrange(9)], "max_tokens": roll.choice([1, 8, 2000]), "ignore_eos": True}
        request = post(URL, body | {"stream": roll.random() < 0.6, "n": roll.choice([1, 1, 2])}, AUTH)
        async with gate, connected(server) as connection:
            await connection.send(request[: roll.choice([roll.randrange(len(request)), len(request)])])
            if roll.random() < 0.3:
                await asyncio.sleep(roll.random() / 20)
            connection.reset()

    async with beside(429) as http:
        await asyncio.gather(*(once() for _ in range(NUM_RESETS)))
        assert (await http.get("/ready")).status_code == 200


STREAMED: list[dict[str, Any]] = [
    {"prompt": "Once upon a time", "max_tokens": 30, "seed": 1, "n": 2, "logprobs": 1},
    {"prompt": [[4, 5], [6]], "max_tokens": 30, "temperature": 0},
    {"prompt": [5], "max_tokens": 20, "num_beams": 3, "n": 2},
    {"prompt": "naïve 日本 😀", "max_tokens": 40, "seed": 2, "stop": ["e", "a"]},
    {"prompt": [9], "max_tokens": 0, "echo": True, "logprobs": 1},
]


async def test_18_a_stream_ends_in_one_of_two_ways(beside: Any) -> None:
    async with beside() as http:
        for body in STREAMED:
            told, streamed = await complete(http, body), await stream(http, body)
            assert {i: c.text for i, c in streamed.choices.items()} == {i: c.text for i, c in told.choices.items()}
            assert [c.finish_reason for c in streamed.choices.values()].count(None) == 0
            for choice in told.choices.values():
                assert not any(stop in choice.text for stop in body.get("stop", ()))
        text = (await http.post(URL, json=STREAMED[0] | {"stream": True})).text
        assert text.count("data: [DONE]\n\n") == 1
        assert text.endswith("data: [DONE]\n\n")
        broken = (await http.post(URL, json=ENDLESS | {"stream": True, "timeout": 0.5})).text
        last = json.loads(broken.strip().rpartition("\n\n")[2].removeprefix("data: "))
        assert last["error"]["code"] == "timeout"
        assert "[DONE]" not in broken


async def test_19_usage_says_what_happened_and_a_seed_reproduces_it(beside: Any) -> None:
    body = {"prompt": [[4, 5, 6], [7]], "max_tokens": 12, "seed": 3, "n": 2, "temperature": 1.3}
    generated = "polydecode_generated_tokens_total"
    async with beside() as http:
        said = await complete(http, body)
        usage = said.head["usage"]
        assert usage["prompt_tokens"] == 4
        assert usage["completion_tokens"] == sum(len(c.token_ids) for c in said.choices.values())
        assert usage["total_tokens"] == 4 + usage["completion_tokens"]
        assert (await complete(http, body)).choices == said.choices
        assert (await stream(http, body)).choices.keys() == said.choices.keys()
        before = await counted(http, generated, 'strategy="beam"')
        beams = await complete(http, {"prompt": [5], "max_tokens": 9, "num_beams": 3, "ignore_eos": True})
        assert beams.head["usage"]["completion_tokens"] == 9
        assert await counted(http, generated, 'strategy="beam"') == before + 9


NEVER_THE_KEY = [
    [], [b""], [b"Bearer"], [b"Bearer "], [KEY.encode()], [b"Basic " + KEY.encode()], [b"Bearer wrong"],
    [b"Bearer " + KEY.encode() + b"x"], [b"Bearer \xff\xfe"], ["Bearer ключ".encode()], [b"Bearer " + b"k" * 9000],
    [f"Bearer {KEY}".encode()] * 2,
]  # fmt: skip
LOCKED = [
    URL,
    CHAT,
    "/v1/models",
    "/v1/strategies",
    "/tokenize",
    "/nowhere",
    "/docs",
    "//health",
    "/health/",
    "/ready/x",
]


async def test_20_every_route_but_the_probes_needs_the_key(server: RunningServer, beside: Any) -> None:
    """Decided on the raw path: no Host header and no encoding opens a door."""
    async with beside():
        for values in NEVER_THE_KEY:
            lines = b"".join(b"Authorization: " + value + b"\r\n" for value in values)
            assert b" 401 " in await raw(server, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + lines)
        for path in (*LOCKED, "/health?/../v1/models", "/%2e%2e/v1/models"):
            answer = await raw(server, f"GET {path} HTTP/1.1\r\nHost: x/health\r\n".encode())
            is_open = path.startswith("/health?")
            assert (b" 200 " if is_open else b" 401 ") in answer.partition(b"\r\n")[0], path
            assert b'"data"' not in answer
        for path in ("/health", "/ready", "/metrics"):
            assert b" 200 " in await raw(server, f"GET {path} HTTP/1.1\r\nHost: evil/v1/models\r\n".encode())


async def raw(server: RunningServer, head: bytes) -> bytes:
    async with connected(server) as connection:
        await connection.send(head + b"Connection: close\r\n\r\n")
        return await connection.read_to_the_end()


async def test_21_only_the_http_port_listens(server: RunningServer, beside: Any) -> None:
    """What the processes exchange, and that none of it is code, is tests/test_guards.py's."""
    async with beside():
        root = psutil.Process(server.pid)
        tree = [root, *root.children(recursive=True)]
        listening = [c.laddr for process in tree for c in process.net_connections("inet") if c.status == "LISTEN"]
        assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", server.port)]
        assert [p.pid for p in tree[1:] for _ in p.net_connections("inet")] == []
        assert [c.laddr for process in tree for c in process.net_connections("unix") if c.laddr] == []


def test_22_pickles_and_code_of_a_model_are_not_loaded(tmp_path: Path, smol_directory: Path) -> None:
    """A pickle would leave a mark; so would the model's own code."""
    mark = tmp_path / "mark"
    pickled = tiny_model(tmp_path / "pickled", smol_directory)
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode())
    coded = tiny_model(tmp_path / "coded", smol_directory)
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "own.py").write_text(f"open({str(mark)!r}, 'w')")
    for directory, words in ((pickled, "safetensors"), (coded, "code of its own")):
        command = [sys.executable, "-m", "server", "serve", "--port", "0", "--model", str(directory)]
        ended = subprocess.run(
            command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=300, check=False
        )
        assert ended.returncode == 1, ended.stderr
        assert words in ended.stderr.splitlines()[-1]
    assert not mark.exists()


async def test_23_errors_and_logs_give_nothing_away(server: RunningServer, beside: Any) -> None:
    async with beside() as http:
        answers = [
            await http.post(URL, json={"prompt": SECRET, "max_tokens": 2}),
            await http.post(URL, json={"prompt": [1], "stop": {SECRET: SECRET}}),
            await http.post(URL, json={"prompt": [1], "model": SECRET}),
            await http.post(URL, json={"prompt": [1], "timeout": 0.001}),
            await http.post(CHAT, json={"messages": [{"role": SECRET, "content": SECRET}]}),
            await http.get(f"/v1/models?key={SECRET}", headers={"authorization": f"Bearer {SECRET}"}),
            await http.get("/v1/%1b[31mred%0d%0aforged%00%e2%80%a8", headers={"x-request-id": f"{SECRET} {SECRET}"}),
        ]
        for answer in answers:
            assert SECRET not in answer.text + str(answer.headers)
            assert not re.search(r"Traceback|File \"|\.py|/(home|tmp|usr|root|work)/|0x[0-9a-f]{6}", answer.text)
    log = server.output
    assert SECRET not in log
    assert KEY not in log
    assert "Traceback" not in log
    lines = [line for line in log.split("\n") if line.startswith("{")]
    requests = [line for line in map(json.loads, lines) if line.get("event") == "request"]
    assert [line for line in requests if line["path"] == r"/v1/\x1b[31mred\r\nforged\x00\u2028"]
    assert not [c for c in log if not c.isprintable() and c != "\n"]


async def test_24_a_running_server_writes_no_file(server: RunningServer, beside: Any) -> None:
    """So its file system may be read-only. The container's own rules are tests/test_docker.py's."""
    async with beside() as http:
        await complete(http, {"prompt": [5], "max_tokens": 9, "num_beams": 3})
        root = psutil.Process(server.pid)
        opened = [file for process in [root, *root.children(recursive=True)] for file in process.open_files()]
        assert [file.path for file in opened if file.mode != "r" and file.path != str(server.log)] == []


async def test_25_there_is_no_other_route_and_no_other_origin(beside: Any) -> None:
    async with beside() as http:
        for path in ("/docs", "/redoc", "/openapi.json", "/debug", "/admin", "/shutdown", "/v1/internal", "/metrics/"):
            for method in ("GET", "POST", "DELETE"):
                assert (await http.request(method, path)).status_code == 404, path
        origin = {"origin": "http://evil.example", "access-control-request-method": "POST"}
        for answer in (
            await http.options(URL, headers=origin),
            await http.post(URL, json={"prompt": [1], "max_tokens": 1}, headers=origin),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert "server" not in answer.headers


def test_26_every_promise_has_a_test() -> None:
    assert list(KEPT_BY) == list(range(1, 27))
    for where in KEPT_BY.values():
        path, _, name = where.partition("::")
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), where

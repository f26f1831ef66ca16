"""Promises about life and death, on real processes and signals: health, worker loss, drain, parents, start, growth,
memory, counts. Beside them somebody's stream, which must stay golden or be told that its worker was lost.

More of 6 to 10 is in tests/server/test_service.py; what one request does to the batch, in test_isolation.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.conformance.exchange import assert_idle, client, metrics
from tests.conformance.lifecycle import (
    NAMESPACE,
    Streamed,
    await_new_worker,
    await_status,
    can_make_first_processes,
    eventually,
    exits_with,
    server_process,
    streams,
    worker_process,
)
from tests.conformance.servers import cramped_server
from tests.conformance.servers.scripted_server import SHORT_DELAY, scripted_model, scripted_server
from tests.conformance.servers.tiny_server import COMMAND, PROMPTS, tiny_model, tiny_server
from tests.conformance.victim import Golden, beside_a_victim, recorded
from tests.running_server import RunningServer, clean_environment
from tests.server.fake_worker import ANSWER, BURST, DIE, NAN, NEVER_FITS, SLOW, STALL, WAIT

STALLS = ("--stall-seconds", "3", "--stall-kill-seconds", "6")
NUM_KILLS = 20
NUM_STREAMS = 16

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[RunningServer]:
    """Real but for its weights, and for memory that ends at MOST_TOKENS tokens a forward."""
    with tiny_server(model, *STALLS, *SHORT_DELAY, command=cramped_server.COMMAND) as running:
        yield running


@pytest.fixture(scope="module")
def goldens(server: RunningServer) -> list[Golden]:
    async def record() -> list[Golden]:
        async with client(server.url) as http:
            return await recorded(http, *PROMPTS)

    return asyncio.run(record())


def endless(first: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": [first, 6, 7], "max_tokens": 1500, "ignore_eos": True, **fields}


async def test_6_health_and_ready_answer_and_tell_the_truth_under_full_load(
    server: RunningServer, goldens: list[Golden]
) -> None:
    async with beside_a_victim(server, goldens) as http:
        bodies = [endless(first, n=4, temperature=1.0) for first in range(10, 10 + NUM_STREAMS)]
        ended: list[Streamed] = []
        load = [asyncio.create_task(stream_again(http, body, ended)) for body in bodies]
        await eventually(lambda: has_arrived(http, NUM_STREAMS))
        before = len(ended)
        for _ in range(50):
            for path in ("/health", "/ready"):
                assert (await http.get(path)).status_code == 200
        assert [task.exception() for task in load if task.done()] == []
        assert len(ended) - before < 50  # answers that waited for the work would see streams of 1,500 tokens end
        for task in load:
            task.cancel()


async def stream_again(http: httpx.AsyncClient, body: dict[str, Any], ended: list[Streamed]) -> None:
    """Until cancelled."""
    while True:
        ended.append(await Streamed().read(http, body))


async def test_6_a_stopped_worker_makes_ready_say_stalled_and_is_replaced(
    server: RunningServer, goldens: list[Golden]
) -> None:
    async with beside_a_victim(server, goldens, bears=(503,), is_worker_kept=False) as http:
        ((waiting, task),) = await streams(http, [endless(10)])
        worker = worker_process(server)
        worker.suspend()
        await await_status(http, "stalled")
        assert (await http.get("/health")).status_code == 200
        refused = await http.post("/v1/completions", json={"prompt": [1]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stalled")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await task).error is not None
        assert waiting.ended_as_promised
        await await_new_worker(http, server, worker)


async def test_7_a_killed_worker_fails_what_it_ran_and_is_replaced(
    server: RunningServer, goldens: list[Golden]
) -> None:
    async with beside_a_victim(server, goldens, bears=(503,), is_worker_kept=False) as http:
        before = await metrics(http)
        running = await streams(http, [endless(first) for first in range(10, 14)])
        plain = asyncio.create_task(http.post("/v1/completions", json=endless(20)))
        worker = worker_process(server)
        worker.kill()
        for streamed, task in running:
            await task
            assert streamed.error is not None
            assert streamed.error["code"] == "worker_lost"
            assert streamed.ended_as_promised
        answer = await plain
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable_error")
        assert (await http.get("/health")).status_code == 200
        await await_new_worker(http, server, worker)
        after = await metrics(http)
        assert after["polydecode_worker_restarts_total"] == before["polydecode_worker_restarts_total"] + 1
        assert_monotonic(before, after)


def assert_monotonic(before: dict[str, float], after: dict[str, float]) -> None:
    counters = [name for name in before if name.endswith(("_total", "_count", "_sum", "_bucket"))]
    assert len(counters) > 50
    assert [name for name in counters if after[name] < before[name]] == []


async def test_7_twenty_kills_at_random_times_under_sixteen_streams(tmp_path: Path) -> None:
    rng = random.Random(7)
    endings: list[Streamed] = []
    with scripted_server(scripted_model(tmp_path / "model"), *SHORT_DELAY, "--max-rows", "64") as scripted:
        async with client(scripted.url) as http:
            golden = await recorded(http, [SLOW, 4], max_tokens=40)
        async with beside_a_victim(scripted, golden, bears=(503,), is_worker_kept=False) as http:
            num_descriptors = server_process(scripted).num_fds()
            users = [asyncio.create_task(stream_on(http, endings)) for _ in range(NUM_STREAMS)]
            seen = await metrics(http)
            for _ in range(NUM_KILLS):
                await await_status(http, "ready")
                await asyncio.sleep(rng.uniform(0, 0.3))
                worker_process(scripted).kill()
                now = await metrics(http)
                assert_monotonic(seen, now)
                seen = now
            await await_status(http, "ready")
            for user in users:
                user.cancel()
            await asyncio.gather(*users, return_exceptions=True)
            assert (await metrics(http))["polydecode_worker_restarts_total"] == NUM_KILLS

            async def has_no_leak() -> bool:
                return bool(server_process(scripted).num_fds() <= num_descriptors)

            await eventually(has_no_leak)
    assert len(endings) > NUM_KILLS
    assert all(streamed.ended_as_promised for streamed in endings)
    assert {streamed.error["code"] for streamed in endings if streamed.error} <= {
        "worker_lost",
        "worker_down",
        "loading",
    }
    assert any(streamed.is_done for streamed in endings)
    assert any(streamed.error and streamed.token_ids for streamed in endings)  # broken off amid its tokens


async def stream_on(http: httpx.AsyncClient, endings: list[Streamed]) -> None:
    """One stream after the other; a stream that ends in any other way than promised fails here or leaves no trace."""
    while True:
        endings.append(await Streamed().read(http, {"prompt": [SLOW], "max_tokens": 5}))
        if endings[-1].status != 200:
            await asyncio.sleep(0.05)


async def test_7_a_request_that_kills_its_worker_is_not_run_again(tmp_path: Path) -> None:
    with scripted_server(scripted_model(tmp_path / "model"), *SHORT_DELAY) as scripted:
        async with client(scripted.url) as http:
            golden = await recorded(http, [SLOW, 4], max_tokens=40)
        async with beside_a_victim(scripted, golden, bears=(503,), is_worker_kept=False) as http:
            for num_losses in (1, 2):
                poison = await http.post("/v1/completions", json={"prompt": [DIE]})
                assert (poison.status_code, poison.json()["error"]["code"]) == (503, "worker_lost")
                await await_status(http, "ready")
                worker = worker_process(scripted)
                answer = await http.post("/v1/completions", json={"prompt": [ANSWER], "max_tokens": 3})
                assert answer.status_code == 200
                assert (await metrics(http))["polydecode_worker_restarts_total"] == num_losses
                assert worker_process(scripted) == worker


async def test_8_a_signal_drains_what_runs_and_waits_also_for_a_first_process(model: Path) -> None:
    prefix = NAMESPACE if can_make_first_processes() else ()
    few_rows = ("--max-rows", "1", "--drain-seconds", "100")
    with exits_with(0), tiny_server(model, *few_rows, command=(*prefix, *COMMAND)) as draining:
        async with client(draining.url) as http:
            first, *others = await recorded(http, *PROMPTS)
            running = await streams(http, [{"prompt": [9, 9], "max_tokens": 1500, "ignore_eos": True}])
            waiting = [
                asyncio.create_task(Streamed().read(http, body_of(golden))) for golden in (first, *others, first)
            ]
            await eventually(lambda: has_arrived(http, 5))
            server_process(draining).send_signal(signal.SIGTERM)
            await await_status(http, "draining")
            refused = await http.post("/v1/completions", json={"prompt": [1]})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert int(refused.headers["retry-after"]) >= 1
            answers = [await task for task in waiting]
            assert [answer.token_ids for answer in answers] == [g.token_ids for g in (first, *others, first)]
            assert all(answer.is_done for answer in answers)
            assert (await running[0][1]).is_done
            assert len(running[0][0].token_ids) == 1500
        draining.process.wait(60)


def body_of(golden: Golden) -> dict[str, Any]:
    return {"prompt": list(golden.prompt_ids), "max_tokens": 48}


async def has_arrived(http: httpx.AsyncClient, num_requests: int) -> bool:
    values = await metrics(http)
    return values["vllm:num_requests_running"] + values["vllm:num_requests_waiting"] >= num_requests


async def test_9_a_busy_worker_that_is_stopped_goes_with_a_parent_that_is_killed(model: Path) -> None:
    with exits_with(-signal.SIGKILL), tiny_server(model) as parent:
        async with client(parent.url) as http:
            ((_, task),) = await streams(http, [endless(10, n=8)])
            worker = worker_process(parent)
            worker.suspend()  # it cannot notice anything now; the kernel has to end it
            parent.process.kill()
            parent.process.wait()
            with pytest.raises(httpx.HTTPError):
                await task
        _, alive = psutil.wait_procs([worker], timeout=30)
        assert alive == [] or worker.status() == psutil.STATUS_ZOMBIE  # then its new parent has yet to look


def run_server(*flags: str) -> subprocess.CompletedProcess[str]:
    """A start that fails."""
    command = [*COMMAND, "--port", "0", *flags]
    environment = clean_environment()
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


@pytest.mark.parametrize(
    ("flags", "status", "message"),
    [
        (("--max-rows", "none"), 2, "max_rows (flag): "),
        (("--stall-kill-seconds", "1"), 2, "stall_kill_seconds must not be less than stall_seconds"),
    ],
)
def test_10_settings_that_cannot_be_are_said_at_once(flags: tuple[str, ...], status: int, message: str) -> None:
    ended = run_server(*flags)
    assert ended.returncode == status
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_10_weights_that_are_cut_off_are_said_at_once(model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    os.truncate(tmp_path / "model.safetensors", (tmp_path / "model.safetensors").stat().st_size // 2)
    ended = run_server("--model", str(tmp_path))
    assert ended.returncode == 1
    assert re.fullmatch(r"polydecode: .*model\.safetensors.*\n", ended.stderr)


def test_10_a_model_that_the_worker_cannot_load_ends_the_server(model: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "none-such"}))
    ended = run_server("--model", str(tmp_path))
    assert ended.returncode == 1
    assert "none-such" in ended.stderr.splitlines()[-1].removeprefix("polydecode: the model could not be loaded: ")
    assert not re.search(r"Traceback|File \"", ended.stderr)
    assert str(tmp_path) not in ended.stderr


async def test_16_mixed_crowds_leave_threads_descriptors_series_and_memory_as_they_were(
    server: RunningServer, goldens: list[Golden]
) -> None:
    """Pools of threads grow to what a crowd needs at once, sooner or later; a leak grows with every crowd."""
    held: list[tuple[int, ...]] = []
    async with beside_a_victim(server, goldens) as http:
        while len(held) < 2 or held[-1] != held[-2]:
            assert len(held) < 8, held
            await mixed_crowd(http, random.Random(len(held)))
            held.append(await holdings(http, server))


async def mixed_crowd(http: httpx.AsyncClient, rng: random.Random) -> None:
    bodies: list[dict[str, Any]] = [
        {"max_tokens": 8},
        {"max_tokens": 6, "n": 3, "temperature": 1.0},
        {"max_tokens": 6, "num_beams": 3},
        {"max_tokens": -1},
        {"nonsense": rng.random()},
        {"user": f"client {rng.random()}", "model": f"model {rng.random()}"},
        {"max_tokens": 1500, "timeout": 0.05},
    ]
    asked = [{"prompt": [rng.randrange(3, 200) for _ in range(12)], **body} for body in bodies for _ in range(3)]
    sent = [http.post("/v1/completions", json=body) for body in asked]
    left = [http.post("/v1/completions", json=endless(rng.randrange(3, 200)), timeout=impatient(0.2)) for _ in range(4)]
    answers = await asyncio.gather(*sent, *left, return_exceptions=True)
    statuses = Counter(a.status_code if isinstance(a, httpx.Response) else type(a).__name__ for a in answers)
    assert set(statuses) == {200, 400, 404, 504, "ReadTimeout"}


def impatient(seconds: float) -> httpx.Timeout:
    """Of an answer only: a busy machine may take its time to connect."""
    return httpx.Timeout(60.0, read=seconds)


async def holdings(http: httpx.AsyncClient, server: RunningServer) -> tuple[int, ...]:
    """Threads of both processes and the metrics' series, labels and all."""
    lines = (await http.get("/metrics")).text.splitlines()
    series = {line.rpartition(" ")[0] for line in lines if line[:1] not in ("#", "")}
    processes = (server_process(server), worker_process(server))
    return (*(process.num_threads() for process in processes), len(series))


async def test_17_too_little_memory_fails_its_cause_and_delays_the_rest(
    server: RunningServer, goldens: list[Golden]
) -> None:
    too_long = cramped_server.MOST_TOKENS + 50
    prompts = [[first, *range(20, 80)] for first in range(3, 15)]  # together more than there is memory for
    async with beside_a_victim(server, goldens) as http:
        alone = [golden.token_ids for golden in await recorded(http, *prompts, max_tokens=12)]
        worker, before = worker_process(server), await metrics(http)
        crowd = [
            http.post("/v1/completions", json={**GREEDY, "prompt": prompt, "max_tokens": 12}) for prompt in prompts
        ]
        causes = [http.post("/v1/completions", json={**GREEDY, "prompt": [first] * too_long}) for first in (3, 4)]
        answers = await asyncio.gather(*causes, *crowd)
        for answer in answers[:2]:
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "out_of_memory")
        assert [answer.json()["choices"][0]["token_ids"] for answer in answers[2:]] == alone
        assert (await metrics(http))["polydecode_preemptions_total"] > before["polydecode_preemptions_total"]
        assert worker_process(server) == worker


GREEDY = {"temperature": 0, "return_token_ids": True, "cache_salt": "a crowd of its own"}


async def test_19_outcomes_add_up_over_everything_that_can_happen_to_a_request(tmp_path: Path) -> None:
    plan = '{"max_running": 12}'
    flags = (*SHORT_DELAY, "--max-queue", "6", "--queue-timeout", "3", "--stall-seconds", "30")
    with scripted_server(scripted_model(tmp_path / "model", plan), *flags) as scripted:
        async with client(scripted.url) as http:
            told = await everything_that_can_happen(http, scripted)
            await assert_idle(http)
            text = (await http.get("/metrics")).text
    counted: Counter[str] = Counter()
    for outcome, value in re.findall(r'^polydecode_requests_total\{.*outcome="(\w+)".*\} (\S+)$', text, re.MULTILINE):
        counted[outcome] += int(float(value))
    assert +counted == told
    assert set(told) == {"success", "length", "cancelled", "rejected", "error"}


async def everything_that_can_happen(http: httpx.AsyncClient, scripted: RunningServer) -> Counter[str]:
    """What the clients were told, in the metrics' words."""
    told: Counter[str] = Counter()
    for prompt in ([ANSWER, 50], [ANSWER], [BURST], [NEVER_FITS], [NAN]):
        told[outcome_of(await ask(http, prompt, max_tokens=4))] += 1
        told[outcome_of(await ask(http, [prompt, prompt], max_tokens=4))] += 1  # two prompts are one request
    for wrong in ({"max_tokens": -1}, {"nonsense": 1}, {"temperature": 1e400}, {"model": "another"}):
        told[outcome_of(await ask(http, [ANSWER], **wrong))] += 1
    told[
        outcome_of(await http.post("/v1/completions", content=b"{", headers={"content-type": "application/json"}))
    ] += 1
    told[outcome_of(await http.post("/v1/chat/completions", json={"messages": []}))] += 1
    for fields in ({}, {"stream": True}):
        with pytest.raises(httpx.ReadTimeout):
            await ask(http, [STALL], 0.3, **fields)
        told["cancelled"] += 1
    told[outcome_of(await ask(http, [STALL], timeout=0.2))] += 1
    crowd = await asyncio.gather(*(ask(http, [WAIT]) for _ in range(10)))  # 6 wait too long, 4 find the queue full
    assert Counter(answer.status_code for answer in crowd) == {503: 6, 429: 4}
    told.update(outcome_of(answer) for answer in crowd)
    running = [asyncio.create_task(ask(http, [STALL])) for _ in range(4)]
    await eventually(lambda: has_arrived(http, 4))
    worker = worker_process(scripted)
    worker.kill()
    told.update([outcome_of(await task) for task in running])
    told[outcome_of(await ask(http, [ANSWER]))] += 1  # whatever it is told while there is no worker
    await await_new_worker(http, scripted, worker)
    told[outcome_of(await ask(http, [ANSWER]))] += 1
    return told


async def ask(http: httpx.AsyncClient, prompt: object, patience: float = 60.0, **fields: Any) -> httpx.Response:
    content = json.dumps({"prompt": prompt, "max_tokens": 3, **fields})
    headers = {"content-type": "application/json"}
    return await http.post("/v1/completions", content=content, headers=headers, timeout=impatient(patience))


def outcome_of(answer: httpx.Response) -> str:
    if answer.status_code == 200:
        reasons = {choice["finish_reason"] for choice in answer.json()["choices"]}
        return "length" if "length" in reasons else "success"
    is_error = answer.status_code in (500, 504) or answer.json()["error"]["code"] == "worker_lost"
    return "error" if is_error else "rejected"


def test_a_first_process_was_tried_or_cannot_be() -> None:
    """Says in the report of a run on which kind of machine promise 8 was shown."""
    if not can_make_first_processes():
        pytest.skip(f"{NAMESPACE[0]} may not make a process namespace here, on {sys.platform}")

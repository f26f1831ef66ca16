"""A killed worker: its requests get an explicit error at once, a new one takes over and answers as before."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.decoding.tiny import tiny
from tests.running_server import RunningServer, running_server

BODY = {"prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0, "return_token_ids": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smol_directory: Path) -> Iterator[RunningServer]:
    """A tiny random Llama behind SmolLM2's tokenizer: a worker that starts in seconds."""
    path = tmp_path_factory.mktemp("model")
    tiny("llama", vocab_size=49152, max_position_embeddings=100_000).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((smol_directory / name).read_bytes())
    with running_server("--model", str(path), "--dtype", "float32") as running:
        yield running


def worker_of(server: RunningServer) -> psutil.Process:
    (worker,) = (
        p for p in psutil.Process(server.pid).children(recursive=True) if "decoding.worker.worker" in p.cmdline()
    )
    return worker


def wait_until_ready(server: RunningServer) -> None:
    deadline = time.monotonic() + 60
    while server.status_of("/ready") != 200:
        assert time.monotonic() < deadline, server.output
        assert server.status_of("/health") == 200
        time.sleep(0.05)


def stream_until_it_ends(server: RunningServer, lines: list[str], started: threading.Event) -> None:
    body = BODY | {"stream": True, "max_tokens": 90_000, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if line:
                lines.append(line)
                started.set()


def test_a_killed_worker_ends_its_streams_with_an_error_and_is_replaced(server: RunningServer) -> None:
    golden = httpx.post(f"{server.url}/v1/completions", json=BODY).json()["choices"]
    lines: list[str] = []
    started = threading.Event()
    reader = threading.Thread(target=stream_until_it_ends, args=(server, lines, started))
    reader.start()
    assert started.wait(30)
    old = worker_of(server)
    os.kill(old.pid, signal.SIGKILL)
    reader.join(10)
    assert not reader.is_alive()
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["type"] == "unavailable_error"
    assert "data: [DONE]" not in lines
    wait_until_ready(server)
    assert worker_of(server).pid != old.pid
    assert not old.is_running()
    assert httpx.post(f"{server.url}/v1/completions", json=BODY).json()["choices"] == golden
    assert "polydecode_worker_restarts_total 1.0" in httpx.get(f"{server.url}/metrics").text


def test_a_reader_that_leaves_frees_its_rows(server: RunningServer) -> None:
    wait_until_ready(server)
    body = BODY | {"stream": True, "max_tokens": 90_000, "ignore_eos": True, "n": 3}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
        assert gauge(server, "vllm:num_requests_running") == 1
    deadline = time.monotonic() + 60
    while gauge(server, "vllm:num_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert gauge(server, "vllm:generation_tokens_total") < 90_000  # far from where it would have ended by itself


def gauge(server: RunningServer, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    (line,) = (line for line in text.splitlines() if line.startswith(name))
    return float(line.split()[-1])

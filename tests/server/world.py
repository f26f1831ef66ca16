"""What the server's tests build their worlds from: a batcher on a fake worker, a model directory, a tiny API."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from decoding.contract.frames import Loaded, Output, Start
from decoding.contract.params import Request, Sampling, StoppingParams
from server.observe.metrics import Metrics
from server.queue.batcher import Batcher
from server.served import Served
from server.settings.sections import QueueSettings, SupervisionSettings
from server.text.tokenizer import Tokenizer
from server.worker.mailbox import Mailbox

FAKE_WORKER = (sys.executable, "-m", "tests.server.fake_worker")
SECONDS = 60.0  # far more than anything takes, on any machine
PATIENT = SupervisionSettings(
    stall_seconds=2 * SECONDS,
    stall_kill_seconds=3 * SECONDS,
    load_timeout=SECONDS,
    worker_restarts=2,
    restart_delay=0.02,
)
QUICK = PATIENT.model_copy(update={"stall_seconds": 0.4, "stall_kill_seconds": 0.8})
QUEUE = QueueSettings(max_queue=100, queue_timeout=2 * SECONDS, request_timeout=3 * SECONDS)


@dataclass(frozen=True, slots=True)
class World:
    batcher: Batcher
    mailbox: Mailbox
    metrics: Metrics
    supervision: asyncio.Task[None]

    @property
    def worker_pid(self) -> int | None:
        return worker_pid(self.mailbox)

    def ask(self, *prompt: int, num_tokens: int = 3, n: int = 1) -> Asked:
        return ask(self.batcher, *prompt, num_tokens=num_tokens, n=n)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"polydecode_{name}", labels) or 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    outputs: AsyncIterator[Output]
    cancel: Callable[[], None]

    async def tokens(self) -> list[int]:
        return [token async for output in self.outputs for chunk in output.chunks for token in chunk.token_ids]


def worker_pid(mailbox: Mailbox) -> int | None:
    return mailbox._worker._process.pid if mailbox._worker is not None else None


def request(*prompt: int, num_tokens: int = 3, n: int = 1) -> Request:
    return Request(prompt, strategy=Sampling(n=n), stopping=StoppingParams(max_tokens=num_tokens))


def ask(batcher: Batcher, *prompt: int, num_tokens: int = 3, n: int = 1, timeout: float | None = None) -> Asked:
    with batcher.reserve("completions", n) as place:
        (ticket,) = place.submit([request(*prompt, num_tokens=num_tokens, n=n)], strategy="sampling", timeout=timeout)
    return Asked(aiter(ticket), ticket.cancel)


def describe(loaded: Loaded) -> Served:
    tokenizer = cast(Tokenizer, None)  # nothing here reads text
    return Served(
        ("m",), loaded.vocab_size, loaded.max_model_len, loaded.eos_token_ids, 0, tokenizer, loaded.architecture
    )


@asynccontextmanager
async def world(
    plan: str = "{}",
    *,
    supervision: SupervisionSettings = PATIENT,
    queue: QueueSettings = QUEUE,
    is_awaited: bool = True,
) -> AsyncIterator[World]:
    """A batcher and a mailbox on a fake worker, loaded unless told otherwise; all processes are gone afterwards."""
    metrics = Metrics("test")
    batcher = Batcher(queue, metrics)
    mailbox = Mailbox(batcher, supervision, FAKE_WORKER)
    batcher.connect(mailbox, describe)
    start: asyncio.Future[Start] = asyncio.get_running_loop().create_future()
    start.set_result(Start(model=plan))
    running = asyncio.create_task(mailbox.run(start))
    try:
        if is_awaited:
            await until(lambda: batcher.status == "ready")
        yield World(batcher, mailbox, metrics, running)
    finally:
        await mailbox.stop()
        await asyncio.wait({running})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not condition():  # noqa: ASYNC110 - most conditions are another process's
            await asyncio.sleep(0.005)


def model_directory(path: Path, plan: str = "{}") -> Path:
    """A directory that passes for a model, with the fake worker's plan in it."""
    path.mkdir(exist_ok=True)
    for name, text in (("config.json", "{}"), ("tokenizer.json", "{}"), ("plan.json", plan)):
        (path / name).write_text(text)
    (path / "model.safetensors").write_bytes(safetensors_bytes())
    return path


def safetensors_bytes() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0\0\0\0"

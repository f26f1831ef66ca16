"""The real server on a tiny random Llama behind SmolLM2's tokenizer: it starts in seconds and its streams run for long.

Its limits are small enough to be met. What its answers ought to be is recorded from it, alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.conformance.victim import Golden, recorded
from tests.decoding.tiny import tiny
from tests.running_server import RunningServer, running_server

PROMPTS = ([5, 6, 7], [400, 17, 9, 900, 31], [77, 1200])
PATIENT = ("--stall-seconds", "120", "--stall-kill-seconds", "300")
SMALL = (
    *("--dtype", "float32", "--max-model-len", "20000", "--kv-memory", "0.05", "--max-rows", "16", "--max-queue", "17"),
    *("--header-timeout", "3", "--body-timeout", "3", "--send-timeout", "3", "--max-connections", "300"),
    *("--log-format", "json"),
)


def tiny_model(directory: Path, smol_directory: Path) -> Path:
    tiny("llama", vocab_size=49152, max_position_embeddings=20_000).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (directory / name).write_bytes((smol_directory / name).read_bytes())
    return directory


@contextmanager
def narrow_server(directory: Path, smol_directory: Path, *flags: str) -> Iterator[RunningServer]:
    model = tiny_model(directory, smol_directory)
    with running_server("--model", str(model), *SMALL, *PATIENT, *flags) as server:
        yield server


def goldens_of(server: RunningServer, headers: dict[str, str] | None = None) -> list[Golden]:
    async def record() -> list[Golden]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120, headers=headers) as http:
            return await recorded(http, *PROMPTS)

    return asyncio.run(record())

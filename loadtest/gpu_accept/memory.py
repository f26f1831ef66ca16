"""What the engine does where the device's memory does not suffice for a tick: fewer at a time, and nobody's answer is
another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from decoding.attention.interface import Batch
from decoding.contract.params import LogitsParams, Request, StoppingParams
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.model.loading import wrap
from decoding.model.model import Model
from loadtest.gpu_accept.report import Check
from loadtest.gpu_accept.session import Session
from loadtest.gpu_accept.shapes import build
from loadtest.gpu_accept.strategies import difference
from tests.decoding.drive import Answer, run
from tests.decoding.engines import make_engine

ROWS = 16
ROOM = 512 << 20
"""Bytes beyond what is in use: a prefill of all rows takes more, that of a few of them less."""


def shortage(session: Session) -> Iterator[Check]:
    length = 512 if session.is_gpu else 32
    model = wrap(build("wide", session.device, torch.float32))
    num_pages = 2 + ROWS * -(-(length + 8) // model.attention.page_size)
    model.attention.allocate(num_pages)
    generator = torch.Generator().manual_seed(3)
    prompts = torch.randint(3, model.info.vocab_size, (ROWS, length), generator=generator).tolist()
    stopping = StoppingParams(4, ignore_eos=True)
    requests = [Request(tuple(p), logits=LogitsParams(temperature=0), stopping=stopping) for p in prompts]
    expected = _answers(model, requests, num_pages, length)
    shortages: list[str] = []
    with _short(model, session.device, 4 * length, shortages):
        found = _answers(model, requests, num_pages, length)
    again = _answers(model, requests, num_pages, length)
    failed = sum(answer.failure is not None for answer in found)
    same = _num_same(found, expected)
    detail = f"{same} of {ROWS} answers the same, {failed} failed, memory was short {len(shortages)} times"
    yield Check("short of memory", same == ROWS and bool(shortages), detail)
    after = _num_same(again, expected)
    yield Check("after it", after == ROWS, f"{after} of {ROWS} answers the same")


def _num_same(found: list[Answer], expected: list[Answer]) -> int:
    return sum(difference(one, other) is None for one, other in zip(found, expected, strict=True))


def _answers(model: Model, requests: list[Request], num_pages: int, length: int) -> list[Answer]:
    engine: Engine = make_engine(
        {"main": model},
        {"main": PageCache(num_pages, model.attention.page_size, has_prefix_index=False)},
        eos_token_ids=(),
        max_rows=ROWS,
        tick_tokens=ROWS * length,
    )
    return run(engine, requests)


@contextmanager
def _short(model: Model, device: torch.device, most_tokens: int, shortages: list[str]) -> Iterator[None]:
    """Too little memory for a tick of all prompts. A CPU, which has none to take away, is said to have too little
    beyond most_tokens."""
    forward = model.forward

    def noting(batch: Batch, *args: Any, **options: Any) -> Any:
        if device.type != "cuda" and batch.num_tokens > most_tokens:
            shortages.append("said")
            raise torch.OutOfMemoryError
        try:
            return forward(batch, *args, **options)
        except torch.OutOfMemoryError as error:
            shortages.append(str(error)[:80])
            raise

    model.forward = noting  # type: ignore[method-assign]
    try:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + ROOM) / total, device)
        yield
    finally:
        model.forward = forward  # type: ignore[method-assign]
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)

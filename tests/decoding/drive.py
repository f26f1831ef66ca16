"""Run requests through an engine and gather what each one said."""

from __future__ import annotations

from collections.abc import Sequence

from decoding.check.answer import Answer, Choice
from decoding.contract.params import Request
from decoding.engine.engine import Build, Engine
from decoding.strategies import build as build_by_name

__all__ = ["Answer", "Choice", "run"]


def run(
    engine: Engine, requests: Sequence[Request], build: Build = build_by_name, max_ticks: int = 5000
) -> list[Answer]:
    """Add all, tick until idle, check that nothing leaked."""
    answers = [Answer() for _ in requests]
    for i, request in enumerate(requests):
        engine.add(i, request, build)
    for _ in range(max_ticks):
        if not engine.has_work:
            engine.check_integrity()
            return answers
        for output in engine.tick():
            answers[output.request_id].take(output)
    raise AssertionError("the engine did not come to rest")

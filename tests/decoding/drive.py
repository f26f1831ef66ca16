"""Run requests through an engine and gather what each one said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from decoding.contract.params import Request
from decoding.engine.engine import Build, Engine
from decoding.engine.output import Failure, Output, Usage
from decoding.seam import Finish, PromptEmit, TraceEvent
from decoding.strategies import build as build_by_name


@dataclass
class Choice:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    finish: Finish | None = None


@dataclass
class Answer:
    choices: dict[int, Choice] = field(default_factory=dict)
    prompt: PromptEmit | None = None
    usage: Usage | None = None
    failure: Failure | None = None
    trace: list[TraceEvent] = field(default_factory=list)
    vector: tuple[float, ...] = ()

    def take(self, output: Output) -> None:
        assert self.usage is None, "an output after the last one"
        for emit in output.emits:
            choice = self.choices.setdefault(emit.choice, Choice())
            assert choice.finish is None, "tokens after the finish"
            choice.token_ids += emit.token_ids
            choice.logprobs += emit.logprobs or ()
            choice.top += emit.top or ()
            choice.finish = emit.finish
        self.prompt = output.prompt or self.prompt
        self.trace += output.trace
        self.vector = output.vector or self.vector
        self.usage, self.failure = output.usage, output.failure

    @property
    def said(self) -> object:
        """Everything that has to be the same alone and in any batch."""
        return self.choices, self.prompt, self.vector, self.failure and self.failure.code

    def tokens(self, choice: int = 0) -> list[int]:
        return self.choices[choice].token_ids


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

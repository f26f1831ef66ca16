"""What one request was answered, gathered tick by tick."""

from __future__ import annotations

from dataclasses import dataclass, field

from decoding.engine.output import Failure, Output, Usage
from decoding.seam import Finish, PromptEmit, TraceEvent


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
        if self.usage is not None:
            raise AssertionError("an output after the last one")
        for emit in output.emits:
            choice = self.choices.setdefault(emit.choice, Choice())
            if choice.finish is not None:
                raise AssertionError("tokens after the finish")
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

"""What comes of a request, as typed values: plain data, made once, holding nothing of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood there. Log-probs are natural logarithms."""

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """logprob: None for the first token of a prompt. top: the likeliest there, best first, as many as asked for."""

    token_id: int
    token: str
    logprob: float | None
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """arguments: the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One thing that the strategy saw or did."""

    step: int
    kind: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens. computed: positions run through a model, returned or not. cached: of the prompt, found in the KV cache.
    accepted, drafted: of speculation."""

    prompt: int
    completion: int
    cached: int = 0
    computed: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers.

    finish_reason: stop, length or tool_calls. score: what the strategy ranks by, where it ranks.
    figures: what else the strategy says of it. logprobs: where they were asked for.
    text: of a chat the content; reasoning and tool_calls are its other parts.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None
    score: float | None = None
    figures: Mapping[str, int | float | str] = field(default_factory=dict)
    logprobs: tuple[ScoredToken, ...] | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def cumulative_logprob(self) -> float | None:
        """Of all its tokens; None where log-probs were not asked for."""
        return None if self.logprobs is None else sum(each.logprob or 0.0 for each in self.logprobs)


@dataclass(frozen=True, slots=True)
class Generation:
    """What came of one prompt. strategy and effective: what ran, in the wire's names; sent back it asks for the same.

    trace: what the strategy saw and did, where it was asked for. text and the like are the first choice's.
    """

    prompt_token_ids: tuple[int, ...]
    choices: tuple[Choice, ...]
    strategy: str
    effective: Mapping[str, Any]
    usage: Usage
    trace: tuple[TraceStep, ...] = ()
    prompt_logprobs: tuple[ScoredToken, ...] | None = None

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        return self.choices[0].finish_reason

    @property
    def score(self) -> float | None:
        return self.choices[0].score

    @property
    def outputs(self) -> tuple[Choice, ...]:
        """The choices, by vLLM's name."""
        return self.choices


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new of one choice of one prompt; joined, they say what the whole answer says.

    prompt: its place among the prompts. tool_calls: of a call that goes on, name and id are empty.
    """

    prompt: int
    choice: int
    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: str | None = None
    score: float | None = None
    figures: Mapping[str, int | float | str] = field(default_factory=dict)
    logprobs: tuple[ScoredToken, ...] | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    trace: tuple[TraceStep, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """The log-probs that the model gives the tokens of a text, each behind those before it; the first has none."""

    tokens: tuple[ScoredToken, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return tuple(each.token_id for each in self.tokens)

    @property
    def logprobs(self) -> tuple[float | None, ...]:
        return tuple(each.logprob for each in self.tokens)

    @property
    def total(self) -> float:
        """The text's log-prob behind its first token."""
        return sum(each.logprob or 0.0 for each in self.tokens)


@dataclass(frozen=True, slots=True)
class Embedding:
    """vector: of length 1, as float32 has it."""

    vector: tuple[float, ...]
    num_tokens: int

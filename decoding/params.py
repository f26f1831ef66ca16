"""What one request asks of the engine: frozen, validated on construction, free of torch.

`server/translate.py` builds these from a wire request and `decoding/worker.py` hands them to the engine.
One params class per strategy; the fields every strategy shares (logits pipeline, stopping, log-probs) stand beside it
in `Request`. Everything here is per request: nothing is ever shared by a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

MAX_SEED = 2**64 - 1

LogprobsMode = Literal["raw", "processed"]
RankBy = Literal["mean", "sum"]
SamplerOrder = Literal["hf", "vllm"]


class InvalidParam(ValueError):
    """A parameter out of its domain; `param` is the field's wire name."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param} {message}")
        self.param = param


def _check(ok: bool, param: str, message: str) -> None:
    if not ok:
        raise InvalidParam(param, message)


@dataclass(frozen=True, slots=True)
class LogitsParams:
    """The row-wise logits pipeline of decoding-methods 0.2; a neutral value switches its step off.

    temperature: 0 or below 1e-5 is greedy (filters are then ignored). top_k: 0 is off.
    frequency and presence count output tokens; repetition_penalty counts prompt and output.
    """

    GREEDY_BELOW: ClassVar[float] = 1e-5

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    sampler_order: SamplerOrder = "hf"

    def __post_init__(self) -> None:
        _check(
            math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "must be finite and not negative"
        )
        _check(self.top_k >= 0, "top_k", "must not be negative")
        _check(0 <= self.top_p <= 1, "top_p", "must lie in [0, 1]")
        _check(0 <= self.min_p <= 1, "min_p", "must lie in [0, 1]")
        _check(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            "must be finite and positive",
        )
        _check(math.isfinite(self.frequency_penalty), "frequency_penalty", "must be finite")
        _check(math.isfinite(self.presence_penalty), "presence_penalty", "must be finite")
        _check(
            all(i >= 0 and math.isfinite(b) for i, b in self.logit_bias),
            "logit_bias",
            "needs ids >= 0 and finite values",
        )
        allowed = self.allowed_token_ids
        _check(
            allowed is None or (len(allowed) > 0 and min(allowed) >= 0),
            "allowed_token_ids",
            "needs at least one id >= 0",
        )

    @property
    def is_greedy(self) -> bool:
        return self.temperature < self.GREEDY_BELOW


@dataclass(frozen=True, slots=True)
class StoppingParams:
    """When a row ends. `max_tokens` counts output tokens, an ending EOS included.

    stop: byte sequences looked for in the bytes of the output tokens, only once min_tokens are out.
    min_tokens masks EOS and stop_token_ids until that many tokens are out.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    stop: tuple[bytes, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check(self.max_tokens >= 0, "max_tokens", "must not be negative")
        _check(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "must lie between 0 and max_tokens")
        _check(all(self.stop), "stop", "must not hold an empty string")
        _check(all(i >= 0 for i in self.stop_token_ids), "stop_token_ids", "must not be negative")


@dataclass(frozen=True, slots=True)
class LogprobsParams:
    """What to report beside the tokens. None: nothing; 0: the token's own log-prob; k: the k best as well.

    raw: log-softmax of the model's logits; processed: after penalties, temperature and filters.
    `prompt` scores the prompt's tokens (the first has no score).
    """

    output: int | None = None
    prompt: int | None = None
    mode: LogprobsMode = "raw"

    def __post_init__(self) -> None:
        _check(self.output is None or self.output >= 0, "logprobs", "must not be negative")
        _check(self.prompt is None or self.prompt >= 0, "prompt_logprobs", "must not be negative")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Multinomial sampling, or greedy at temperature 0; `n` independent choices share the prompt's pages."""

    NAME: ClassVar[str] = "sampling"

    n: int = 1

    def __post_init__(self) -> None:
        _check(self.n >= 1, "n", "must be at least 1")

    @property
    def max_rows(self) -> int:
        return self.n


@dataclass(frozen=True, slots=True)
class BestOf:
    """Sample `best_of` choices, return the `n` best by raw log-prob (Adiwardana et al. 2020, arXiv 2001.09977)."""

    NAME: ClassVar[str] = "best_of"

    n: int = 1
    best_of: int = 1
    rank_by: RankBy = "mean"

    def __post_init__(self) -> None:
        _check(self.n >= 1, "n", "must be at least 1")
        _check(self.best_of >= self.n, "best_of", "must not be less than n")

    @property
    def max_rows(self) -> int:
        return self.best_of


StrategyParams = Sampling | BestOf
PARAMS: dict[str, type[StrategyParams]] = {p.NAME: p for p in (Sampling, BestOf)}
"""Strategy name -> its params class: what the wire between the processes names."""


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and what to do with it. Lower `priority` runs first; equal priorities run in arrival order."""

    prompt_ids: tuple[int, ...]
    strategy: StrategyParams = field(default_factory=Sampling)
    logits: LogitsParams = field(default_factory=LogitsParams)
    stopping: StoppingParams = field(default_factory=StoppingParams)
    logprobs: LogprobsParams = field(default_factory=LogprobsParams)
    seed: int = 0
    cache_salt: str = ""
    priority: int = 0

    def __post_init__(self) -> None:
        _check(len(self.prompt_ids) > 0, "prompt", "must not be empty")
        _check(min(self.prompt_ids) >= 0, "prompt", "must not hold a negative token id")
        _check(0 <= self.seed <= MAX_SEED, "seed", "must fit 64 bits")

    @property
    def max_rows(self) -> int:
        """The most rows that can live at once."""
        return self.strategy.max_rows

    @property
    def highest_token_id(self) -> int:
        """The highest token id that any of its fields names: it must be below the width of the logits."""
        biased = (token_id for token_id, _ in self.logits.logit_bias)
        allowed = self.logits.allowed_token_ids or ()
        return max((*self.prompt_ids, *biased, *allowed, *self.stopping.stop_token_ids))

    @property
    def max_length(self) -> int:
        """The most positions one row can take: the last token drawn is never fed."""
        return self._length(self.stopping.max_tokens)

    @property
    def certain_length(self) -> int:
        """Positions that every row of an independent choice takes for sure, however early its text may end."""
        stopping = self.stopping
        is_endless = stopping.ignore_eos and not stopping.stop and not stopping.stop_token_ids
        return self._length(stopping.max_tokens if is_endless else stopping.min_tokens)

    def _length(self, num_output: int) -> int:
        return len(self.prompt_ids) + max(num_output - 1, 0)

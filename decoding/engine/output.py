"""What a tick says about a request: emitted tokens, and at the end the work done or the failure. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field

from decoding.seam import Emit, PromptEmit, TraceEvent


@dataclass(frozen=True, slots=True)
class Usage:
    """The work done for a request. Seconds; computed tokens are positions run through a model."""

    cached_tokens: int
    computed_tokens: int
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    preemptions: int
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request ended without an answer. `cause` is for the log only.

    code: never_fits | no_model | nothing_to_draw | nan_logits | out_of_memory | internal.
    """

    code: str
    message: str
    cause: BaseException | None = None


@dataclass(slots=True)
class Output:
    """Everything a tick says about one request; `usage` is set exactly once, on the last one."""

    request_id: int
    emits: list[Emit] = field(default_factory=list)
    prompt: PromptEmit | None = None
    trace: list[TraceEvent] = field(default_factory=list)
    vector: tuple[float, ...] = ()
    usage: Usage | None = None
    failure: Failure | None = None

"""What one request's strategy saw and did, step by step, in a form in which two runs can be compared bit by bit.

A row's id differs from run to run: rows are numbered in the order in which the strategy meets them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any

import torch

from decoding.contract.params import Request
from decoding.seam import Feed, Move, Observation, Open, Reading, RowId, RowView, Strategy, Want
from decoding.stopping import Stopping
from decoding.strategies import Build

OWN = "decoding"

TOLD: Mapping[str, Any] = {
    "position": lambda want: True,
    "tokens": lambda want: want.draws,
    "logprobs": lambda want: want.draws and want.logprobs,
    "drawn_scores": lambda want: want.draws and want.logprobs,
    "top": lambda want: want.top_k,
    "top_logprobs": lambda want: want.top_k and want.logprobs,
    "raw_top": lambda want: want.raw_top,
    "gathered": lambda want: want.gather,
    "gathered_logprobs": lambda want: want.gather and want.logprobs,
    "next_score": lambda want: want.gather_next,
    "full": lambda want: want.full,
    "full_logprobs": lambda want: want.full and want.logprobs,
    "entropy": lambda want: want.entropy,
    "varentropy": lambda want: want.entropy,
    "hidden": lambda want: want.hidden,
    "layers": lambda want: want.layers,
    "attention": lambda want: want.attention,
    "contrasted": lambda want: want.contrast,
    "kept": lambda want: want.keep,
    "kept_raw": lambda want: want.keep and want.logprobs,
}
"""Field of a Reading -> whether a Want asks for it."""


class Untold(AttributeError):
    """A strategy looked at what its Want did not ask for."""


@dataclass(frozen=True, slots=True)
class Step:
    """seen, did: everything, exactly. shown: of what was done, for a person."""

    seen: Any
    did: Any
    shown: str


@dataclass(slots=True)
class Record:
    """steps[0] is `begin`. error: what the step behind the last of them raised."""

    steps: list[Step] = field(default_factory=list)
    error: Exception | None = None


class Recorded:
    """A strategy that is written down. Its own code may look only at what its Wants ask for."""

    def __init__(self, strategy: Strategy, record: Record) -> None:
        self._strategy = strategy
        self._record = record
        self._numbers: dict[RowId, int] = {}
        self._move = Move()

    def begin(self, prompt_ids: Sequence[int]) -> Move:
        return self._noted((), lambda: self._strategy.begin(prompt_ids))

    def step(self, seen: Observation) -> Move:
        rows = tuple(self._row(view) for view in seen.rows)
        told = Observation(tuple(_told(view, feed) for view, feed in zip(seen.rows, self._move.feeds, strict=True)))
        return self._noted(rows, lambda: self._strategy.step(told))

    def _row(self, view: RowView) -> Any:
        number = self._numbers.setdefault(view.row, len(self._numbers))
        return number, view.length, exact(view.readings)

    def _noted(self, seen: Any, act: Any) -> Move:
        try:
            move: Move = act()
        except Exception as error:
            self._record.error = error
            raise
        feeds = tuple(self._feed(feed) for feed in move.feeds)
        hold = tuple(self._numbers.get(row, -1) for row in move.hold)
        rest = exact((move.emit, move.prompt, move.drafted, move.accepted, move.trace, move.vector))
        self._record.steps.append(Step(seen, (feeds, hold, rest), shown(move)))
        self._move = move
        return move

    def _feed(self, feed: Feed) -> Any:
        parent = exact(feed.parent) if isinstance(feed.parent, Open) else self._numbers.get(feed.parent, -1)
        return parent, exact(tuple(getattr(feed, each.name) for each in fields(feed) if each.name != "parent"))


def recording(build: Build, record: Record) -> Build:
    def recorded(request: Request, stopping: Stopping, tools: Any) -> Strategy:
        return Recorded(build(request, stopping, tools), record)

    return recorded


def exact(value: Any) -> Any:
    """The same for the same bits alone."""
    if isinstance(value, bool | int | str | bytes | None | Enum):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous()
        return tuple(flat.shape), str(flat.dtype), flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    if is_dataclass(value):
        return tuple(exact(getattr(value, each.name)) for each in fields(value))
    if isinstance(value, Mapping):
        return tuple((exact(name), exact(inner)) for name, inner in value.items())
    return tuple(map(exact, value))


def shown(move: Move) -> str:
    """In a few words."""
    said = [f"emits {list(emit.token_ids)} of choice {emit.choice}" for emit in move.emit if emit.token_ids]
    fed = [f"feeds {list(feed.tokens)}" + (f" and drops {feed.drop}" if feed.drop else "") for feed in move.feeds]
    return ", ".join([*said, *fed]) or "ends"


def _told(view: RowView, feed: Feed) -> RowView:
    return RowView(view.row, view.length, tuple(_guarded(view.readings, feed)))


def _guarded(readings: Sequence[Reading], feed: Feed) -> Iterator[Any]:
    last = len(readings) - 1
    for at, reading in enumerate(readings):
        yield _Told(reading, feed.want if at == last and not feed.want.is_empty else feed.inner)


class _Told:
    """A Reading of which code that is not ours sees only what the Want asked for."""

    __slots__ = ("_reading", "_want")

    def __init__(self, reading: Reading, want: Want) -> None:
        self._reading = reading
        self._want = want

    def __getattr__(self, name: str) -> Any:
        reader = sys._getframe(1).f_globals.get("__name__", "")
        if name in TOLD and reader.partition(".")[0] != OWN and not TOLD[name](self._want):
            raise Untold(f"it looks at Reading.{name}, and its Want did not ask for that")
        return getattr(self._reading, name)

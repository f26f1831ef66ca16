"""A request under way: its strategy, its rows, and what of its current Move has run. Owned by the engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from decoding.contract.params import Request
from decoding.engine.encoder_memory import EncoderMemory
from decoding.engine.rows import Row
from decoding.logits.pipeline import NEUTRAL, Pipeline
from decoding.seam import Feed, Reading, RowId, RowView, Strategy, Want


@dataclass(slots=True, eq=False)
class Work:
    """One feed of the current Move: its row, where the feed begins in the row's log, what has been read so far."""

    row: Row
    feed: Feed
    first: int
    readings: list[Reading] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The position that `feed.want` reads."""
        return self.row.log.length - 1

    @property
    def next_read(self) -> int:
        """The first position still to be read: it must go through the model even where its page is cached."""
        return self.last if self.feed.inner.is_empty else self.first + len(self.readings)

    @property
    def is_done(self) -> bool:
        return self.row.log.length == self.row.table.length

    @property
    def is_step(self) -> bool:
        """Whether one token is pending behind others that the cache holds."""
        return self.row.log.length - self.row.table.length == 1 < self.row.log.length

    def want_at(self, position: int) -> Want:
        return self.feed.want if position == self.last else self.feed.inner

    @property
    def view(self) -> RowView:
        return RowView(self.row.id, self.row.log.length, tuple(self.readings))


@dataclass(slots=True, eq=False)
class LiveRequest:
    """Times are in seconds."""

    id: int
    request: Request
    salt: bytes
    arrival: int  # breaks ties among equal priorities; also the age that preemption goes by
    submitted_at: float
    strategy: Strategy = field(init=False)  # there once it is built
    pipeline: Pipeline = NEUTRAL
    rows: dict[RowId, Row] = field(default_factory=dict)
    works: list[Work] = field(default_factory=list)
    memories: dict[tuple[str, tuple[int, ...]], EncoderMemory] = field(default_factory=dict)  # by model and source
    is_running: bool = False
    admitted_at: float | None = None
    first_token_at: float | None = None
    num_cached: int = 0
    num_computed: int = 0
    num_encoded: int = 0
    under_way: object | None = None  # the launch that its works are in, and that is not read yet
    num_preemptions: int = 0
    lost_pages: Counter[str] = field(default_factory=Counter)  # by model: what preemption took and it needs again
    yielded_pages: int = 0  # what it held when it last gave way for its size
    resumed_at: float = 0.0  # its last admission
    stepped_at: float | None = None  # its first step after that
    passed_rows: int = 0  # rows of requests that were admitted before it since
    num_drafted: int = 0
    num_accepted: int = 0
    max_length: int = field(init=False)  # of a row, in positions

    def __post_init__(self) -> None:
        self.max_length = self.request.max_length

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first: lower runs earlier and is preempted later."""
        return (self.request.priority, self.arrival)

    @property
    def owners(self) -> list[Row | EncoderMemory]:
        """Whatever of it has pages."""
        return [*self.rows.values(), *self.memories.values()]

    def num_pages(self, model: str) -> int:
        """Pages of the model's cache that it holds; those that its rows share count once."""
        return len({page for owner in self.owners if owner.model == model for page in owner.table.pages})

    @property
    def unfilled(self) -> list[EncoderMemory]:
        """Memories that must be encoded before any row runs."""
        return [m for m in self.memories.values() if not m.is_filled]

    @property
    def reserved(self) -> list[EncoderMemory]:
        """Those of them that have their pages and are encoded in this tick."""
        return [m for m in self.unfilled if m.table.pages]

    @property
    def is_move_done(self) -> bool:
        for work in self.works:  # noqa: SIM110 - a generator costs more than it looks at
            if work.row.log.length != work.row.table.length:
                return False
        return True

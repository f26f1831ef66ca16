"""Which rows run in the next tick. Owns the waiting and the running requests; knows pages and rows, not what they mean.

Admission: requests start in order of priority and arrival (`shares.py`: in turns where there are several clients), each
when rows and pages suffice.

Preemption: running requests get pages in the same order. When a model's pages run out, one request loses all of its
pages and waits to be admitted again; its tokens are fed again then. It is the youngest that holds pages there, unless
one holds far more than an equal share. A request preempted for its size goes to the end of the queue, and is preempted
for it again only when it holds twice as much as the last time, so this happens to it a few times at most. Otherwise the
oldest request is never preempted, so there is always progress. If it needs more than a whole cache, it is `starved` and
the engine ends it.

Encoders: the memory of a request's source takes pages like a row. Its rows run from the tick after the one that fills
the memory.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from decoding.engine.cache import PageCache, PageTable
from decoding.engine.packing import Span
from decoding.engine.request import LiveRequest, Work
from decoding.engine.shares import Shares

SHORT_FEED = 32
"""Feeds of up to this many tokens (decode steps, verification windows) run in every tick, ahead of longer ones."""

LARGE = 1.5
"""A request that holds more pages than this many equal shares of a cache is preempted before younger ones."""


class Scheduled(NamedTuple):
    """A span of one work, and the page copies it needs before it runs."""

    live: LiveRequest
    work: Work
    span: Span
    copies: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Counters:
    """Totals since start. Prefix figures are in tokens."""

    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0


class Scheduler:
    """Plans ticks.

    max_rows: rows that may be alive at once.
    tick_tokens: how many tokens of long feeds (prefill) one tick may run.
    chunk: parts of a long feed end at multiples of so many tokens.
    """

    def __init__(self, caches: Mapping[str, PageCache], *, max_rows: int, tick_tokens: int, chunk: int = 64) -> None:
        self._caches = caches
        self._max_rows = max_rows
        self._tick_tokens = tick_tokens
        self._chunk = chunk
        self.waiting: list[LiveRequest] = []
        self.running: list[LiveRequest] = []
        self.starved: list[LiveRequest] = []
        self.counters = Counters()
        self._num_arrived = 0
        self._is_short = False  # of memory, until a running request ends

    def next_arrival(self) -> int:
        """A place behind everybody of the same priority."""
        self._num_arrived += 1
        return self._num_arrived

    def enqueue(self, live: LiveRequest) -> None:
        bisect.insort(self.waiting, live, key=lambda w: w.order)

    def remove(self, live: LiveRequest) -> None:
        """Forget the request and give its pages back."""
        if live.is_running:
            self._is_short = False
        (self.running if live.is_running else self.waiting).remove(live)
        live.is_running = False
        self._release(live)

    def admit(self, now: float) -> list[LiveRequest]:
        """Begin a tick: move waiting requests to running while rows and pages last. Returns those that never ran."""
        fresh = []
        while self.waiting:
            shares = Shares(self._max_rows, self.running, self.waiting)
            live = shares.next_waiting()
            if not self._has_room(live) and not self._make_way(live, shares, now):
                break
            self._start(live, now)
            if live.admitted_at is None:
                live.admitted_at = now
                self.counters.prefix_queries += live.works[0].row.log.length
                fresh.append(live)
        return fresh

    def note_step(self, live: LiveRequest, now: float) -> None:
        """All that the request had to run has run, for the first time since it was admitted."""
        live.stepped_at = now

    def give_way(self, lives: Iterable[LiveRequest]) -> None:
        """Preempt them because memory beside the cache ran out; nothing is admitted until a running one has ended."""
        for live in lives:
            self._preempt(live)
        self._is_short = True

    def schedule(self) -> list[Scheduled]:
        """The spans of the next tick, pages reserved: first every short feed, then long ones while tick_tokens last.

        Where the next page of several long feeds would be the same, only one of them runs in this tick; the others take
        the page from the prefix index in the next. So prompts that begin alike and come at once are computed once.
        Sources are encoded whole. They count among tick_tokens; one that is longer runs as the tick's first.
        Of a request whose works are under way already, nothing is scheduled.
        Sets `starved` to the requests that no preemption can make room for; they must be ended.
        """
        self.starved = []
        chosen: dict[LiveRequest, list[Scheduled]] = {}
        with_long: list[LiveRequest] = []
        for live in [r for r in self.running if r.under_way is None]:
            is_long = bool(live.memories) and bool(live.unfilled)
            for work in self._ready_works(live):
                pending = work.row.num_pending
                if pending > SHORT_FEED:
                    is_long = True
                elif pending:
                    self._place(live, work, pending, chosen)
            if is_long:
                with_long.append(live)
        budget, begun = self._tick_tokens, set[tuple[str, bytes]]()
        for live in with_long:
            budget -= self._place_sources(live, budget, chosen)
            for work in self._ready_works(live):
                if work.row.num_pending > SHORT_FEED and budget > 0 and self._is_first(live, work, begun):
                    count = self._chunk_length(work, budget)
                    budget -= self._place(live, work, count, chosen)
        return [scheduled for of_request in chosen.values() for scheduled in of_request]

    @property
    def _num_free_rows(self) -> int:
        return self._max_rows - sum(r.request.max_rows for r in self.running)

    def _start(self, live: LiveRequest, now: float) -> None:
        at = self.waiting.index(live)
        for passed in self.waiting[:at]:
            if passed.request.client != live.request.client:
                passed.passed_rows += live.request.max_rows
        del self.waiting[at]
        bisect.insort(self.running, live, key=lambda r: r.order)
        live.is_running = True
        live.resumed_at, live.stepped_at, live.passed_rows = now, None, 0

    def _make_way(self, live: LiveRequest, shares: Shares, now: float) -> bool:
        """Preempt as many of the requests that must yield to it as it takes; whether it has room then. None, where not
        enough rows would come free."""
        if self._is_short or not shares.is_entitled(live):
            return False
        yielding = list(shares.yielding(live, now))
        if self._num_free_rows + sum(r.request.max_rows for r in yielding) < live.request.max_rows:
            return False
        for other in yielding:
            self._preempt(other)
            if self._has_room(live):
                return True
        return False

    def _has_room(self, live: LiveRequest) -> bool:
        """Whether rows suffice, and pages for its next feeds beside one more page for each running row."""
        if live.request.max_rows > self._num_free_rows:
            return False
        if not self.running:
            return True
        if self._is_short:
            return False
        needed = Counter(row.model for r in self.running for row in r.rows.values())
        for memory in (m for r in self.running for m in r.unfilled):
            needed[memory.model] += self._caches[memory.model].pages_for(memory.length)
        needed += self._pages_to_begin(live)
        return all(needed[name] <= cache.num_available for name, cache in self._caches.items())

    def _pages_to_begin(self, live: LiveRequest) -> Counter[str]:
        """For its next feeds. After a preemption, at least what it held before: its rows no longer share more than the
        prompt."""
        needed: Counter[str] = Counter()
        for memory in live.unfilled:
            needed[memory.model] += self._caches[memory.model].pages_for(memory.length)
        for at, work in enumerate(live.works):
            model = work.row.model
            needed[model] += 1 if at else self._caches[model].pages_for(work.row.num_pending)
        num_rows = Counter(row.model for row in live.rows.values())
        for model, lost in live.lost_pages.items():
            needed[model] = max(needed[model], lost + num_rows[model] - 1)
        return needed

    def _ready_works(self, live: LiveRequest) -> list[Work]:
        """Works that may run now. Of rows without any pages one runs at a time: the next takes the pages that both have
        in common from the prefix index, so that forks fed again after a preemption share their prompt as before."""
        if not live.is_running or (live.memories and live.unfilled):  # preempted earlier in this very tick, not encoded
            return []
        if len(live.works) == 1 and live.works[0].is_step:
            return live.works
        ready = []
        for model in self._caches:
            unfinished = [w for w in live.works if w.row.model == model and not w.is_done]
            fed = [w for w in unfinished if w.row.table.length]
            if unfinished and not fed:
                fed = unfinished[:1]
            for work in fed:
                if work.row.num_pending > SHORT_FEED or not work.row.table.length:
                    self._adopt(live, work)
            ready += fed
        return ready

    def _is_first(self, live: LiveRequest, work: Work, begun: set[tuple[str, bytes]]) -> bool:
        """Whether no other work of this tick computes the same next page."""
        row = work.row
        limit = min(work.next_read, row.indexable_length)
        digest = self._caches[row.model].next_digest(row.table, row.log.ids, row.salted(live.salt), limit)
        if digest is None:
            return True
        is_first = (row.model, digest) not in begun
        begun.add((row.model, digest))
        return is_first

    def _chunk_length(self, work: Work, budget: int) -> int:
        """Tokens of a long feed for this tick. It ends at a multiple of the chunk, however much else runs."""
        start, pending = work.row.table.length, work.row.num_pending
        if pending <= budget:
            return pending
        end = (start + budget) // self._chunk * self._chunk
        return end - start if end > start else min(pending, self._chunk - start % self._chunk)

    def _place(self, live: LiveRequest, work: Work, count: int, chosen: dict[LiveRequest, list[Scheduled]]) -> int:
        """Reserve pages for `count` tokens of the work, by preemption if need be. Returns the tokens placed."""
        if not live.is_running:  # preempted since its works were listed
            return 0
        row, cache = work.row, self._caches[work.row.model]
        copies: tuple[tuple[int, int], ...] = ()
        if not cache.has_room(row.table, count):
            if not self._make_room(live, row.model, row.table, count, chosen):
                return 0
            copies = tuple(cache.grow(row.table, count))
        is_probed = work.feed.want.attention and count == row.num_pending
        span = Span.next_of(row, count, is_probed=is_probed)
        chosen.setdefault(live, []).append(Scheduled(live, work, span, copies))
        return count

    def _place_sources(self, live: LiveRequest, budget: int, chosen: dict[LiveRequest, list[Scheduled]]) -> int:
        """Reserve pages for what the request's encoders have to read. Returns the tokens placed."""
        placed = 0
        for memory in live.unfilled:
            is_due = placed + memory.length <= budget or (budget == self._tick_tokens and not placed)
            if live.is_running and is_due and self._make_room(live, memory.model, memory.table, memory.length, chosen):
                self._caches[memory.model].grow(memory.table, memory.length)
                placed += memory.length
        return placed

    def _make_room(
        self, live: LiveRequest, model: str, table: PageTable, count: int, chosen: dict[LiveRequest, list[Scheduled]]
    ) -> bool:
        """Preempt until the table can grow by `count`; False where that took the request itself."""
        cache = self._caches[model]
        while cache.pages_to_grow(table, count) > cache.num_available:
            owners = [r for r in self.running if r is live or _has_pages(r, model)]
            victim = self._victim(owners, model)
            if len(owners) == 1:
                self.starved.append(victim)
            self._preempt(victim)
            chosen.pop(victim, None)
            if victim is live:
                return False
        return True

    def _victim(self, owners: list[LiveRequest], model: str) -> LiveRequest:
        """The youngest of the least urgent, unless one of them is large. That one goes to the end of the queue."""
        most = LARGE * self._caches[model].num_usable / len(owners)
        last = owners[-1]
        for live in reversed(owners):
            if live.request.priority == last.request.priority:
                held = live.num_pages(model)
                if held > max(most, 2 * live.yielded_pages):
                    live.yielded_pages, live.arrival = held, self.next_arrival()
                    return live
        return last

    def _adopt(self, live: LiveRequest, work: Work) -> None:
        """Take what the prefix index has of the row from where it is."""
        row = work.row
        limit = min(work.next_read, row.indexable_length)
        adopted = self._caches[row.model].adopt_prefix(row.table, row.log.ids, row.salted(live.salt), limit)
        is_prompt = work is live.works[0] and live.first_token_at is None
        if is_prompt and not live.num_preemptions:
            live.num_cached += adopted
            self.counters.prefix_hits += adopted

    def _preempt(self, live: LiveRequest) -> None:
        is_refed = all(work.row.num_pending <= SHORT_FEED for work in live.works)
        for model in self._caches:
            live.lost_pages[model] = max(live.num_pages(model), 0 if is_refed else live.lost_pages[model])
        self.running.remove(live)
        live.is_running = False
        self._release(live)
        live.num_preemptions += 1
        self.counters.preemptions += 1
        self.enqueue(live)

    def _release(self, live: LiveRequest) -> None:
        live.under_way = None  # whatever is written there now is nobody's
        for owner in live.owners:
            self._caches[owner.model].free(owner.table)


def _has_pages(live: LiveRequest, model: str) -> bool:
    """Whether preempting the request would give the model's cache anything back."""
    return any(owner.model == model and owner.table.pages for owner in live.owners)

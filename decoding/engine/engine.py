"""The engine: add, cancel, tick. It knows rows, pages and Moves, and no strategy by name.

A tick packs the rows that are due, encodes the sources that are due, runs one ragged forward per model, reads what the
strategies asked for, and advances the strategies whose rows have all run. What a row reads depends on its own log (and
its request's source) alone; that is the exactness contract.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from decoding.attention.interface import Batch
from decoding.contract.params import Request
from decoding.engine.ahead import Ahead
from decoding.engine.cache import PageCache
from decoding.engine.encoder_memory import EncoderMemory
from decoding.engine.forwarding import Enqueued, Forwarded, Model, enqueue_reads, forward
from decoding.engine.isolation import ALL_EXCLUDED, Isolation, failure_of
from decoding.engine.output import Failure, Output, Usage
from decoding.engine.packing import Span, pack_sources
from decoding.engine.reading import HostCopy, Unreadable
from decoding.engine.request import LiveRequest, Work
from decoding.engine.rows import Row
from decoding.engine.scheduler import Scheduled, Scheduler
from decoding.engine.tools import NotBegun, RowTools
from decoding.logits.pipeline import NEUTRAL, Pipelines
from decoding.seam import Feed, Move, Observation, Open, Reading, RowId, Strategy, Tools
from decoding.stopping import Stopping

Build = Callable[[Request, Stopping, Tools], Strategy]

_NOT_FINITE = Failure("nan_logits", "the model's scores were not finite")


class Encoder(Protocol):
    """The other half of a model that has one."""

    @property
    def max_source_len(self) -> int: ...

    def encode(self, sources: Batch) -> None:
        """Run whole sources, and write what the decoder's rows will read of them into their slots."""


@dataclass(frozen=True, slots=True)
class SourceDue:
    """A source to encode, its memory's pages reserved."""

    live: LiveRequest
    memory: EncoderMemory


class Engine:
    """Runs requests to their end, all in one continuous batch. Single-threaded; raises nothing for a bad request.

    encoders: of those models that have one; every request to them brings a source. launches_ahead: the forward of the
    next tick before this one is read, wherever it can be guessed.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        caches: Mapping[str, PageCache],
        *,
        encoders: Mapping[str, Encoder] | None = None,
        eos_token_ids: Sequence[int],
        token_bytes: Sequence[bytes] = (),
        special_tokens: Sequence[tuple[int, str]] = (),
        max_rows: int = 256,
        tick_tokens: int = 512,
        max_model_len: int = 1 << 30,
        shares_prefixes: bool = True,
        launches_ahead: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models = models
        self._caches = caches
        self._encoders = encoders or {}
        self._eos_token_ids = tuple(eos_token_ids)
        self._token_bytes = token_bytes
        self._special = {token_id: name.encode() for token_id, name in special_tokens}
        self._pipelines = Pipelines(eos_token_ids, token_bytes, special_tokens)
        self._max_rows = max_rows
        self._max_model_len = max_model_len
        self._shares_prefixes = shares_prefixes
        self._clock = clock
        self._live: dict[int, LiveRequest] = {}
        self._outputs: dict[int, Output] = {}
        self._num_rows = 0
        self.scheduler = Scheduler(caches, max_rows=max_rows, tick_tokens=tick_tokens)
        self._encoding = Isolation(self._encode, self.scheduler.give_way, self._fail)
        self._decoding = Isolation(self._forward_and_read, self.scheduler.give_way, self._fail)
        self.ahead = Ahead(models, caches, is_on=launches_ahead)
        self.tick_rows = 0
        self.tick_tokens = 0
        self.computed_tokens = 0
        self.encoded_sources = 0
        self.drafted_tokens = 0
        self.accepted_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._outputs)

    @property
    def used_pages(self) -> int:
        """KV pages that live rows own, over all models."""
        return sum(cache.num_used for cache in self._caches.values())

    def add(self, request_id: int, request: Request, build: Build) -> None:
        """Queue a request; its strategy is built now and begins now, its rows run when the scheduler admits them."""
        live = self._new_live(request_id, request)
        self._live[request_id] = live
        self.scheduler.enqueue(live)
        failure = self._refusal(request)
        if failure is not None:
            self._fail(live, failure)
            return
        try:
            live.pipeline = self._pipelines.build(request.logits, request.stopping)
            stopping = Stopping(request.stopping, self._eos_token_ids, self._token_bytes, self._special)
            live.strategy = build(request, stopping, RowTools(live, self._pipelines))
            self._apply(live, live.strategy.begin(request.prompt_ids))
        except Exception as error:
            self._fail(live, failure_of(error))

    def read_vocabulary(self) -> None:
        """What grammars need of it, at once rather than when the first one comes."""
        if self._token_bytes and self._eos_token_ids:
            _ = self._pipelines.grammars

    def begin(self, request: Request) -> Future[Any] | None:
        """What `add` would wait for, under way in a thread; None where it waits for nothing."""
        return self._pipelines.begin(request.logits)

    def rest(self) -> None:
        """Nothing is left to do: forget what only running requests need. Raises cache.IntegrityError."""
        self._pipelines.rest()
        self.check_integrity()

    def cancel(self, request_id: int) -> None:
        """Forget the request at once: pages and rows are back when this returns. Unknown ids are ignored."""
        live = self._live.pop(request_id, None)
        self._outputs.pop(request_id, None)
        if live is not None:
            self.scheduler.remove(live)

    def tick(self) -> list[Output]:
        """One step of everybody. Returns what there is to say, one Output per request concerned."""
        scheduled = self._pack()
        self._encoding.run(self._sources_due())
        self._decoding.run([s for s in scheduled if s.live.is_running])  # forward and read
        self._advance()
        self._pipelines.settle()
        outputs = list(self._outputs.values())
        self._outputs = {}
        return outputs

    def check_integrity(self) -> None:
        """Raise cache.IntegrityError unless every page is accounted for by a live row or memory, the index or the free
        list."""
        for name, cache in self._caches.items():
            owners = [owner for live in self._live.values() for owner in live.owners]
            cache.check_integrity(owner.table for owner in owners if owner.model == name)

    # pack

    def _pack(self) -> list[Scheduled]:
        self.ahead.settle()
        for live in self.scheduler.admit(self._clock()):
            self._output(live)  # says that the request no longer waits, long before its first token
        scheduled = self.scheduler.schedule()
        for live in self.scheduler.starved:
            self._fail(live, Failure("never_fits", "the request outgrew the KV cache"))
        self.tick_rows = len(scheduled)
        self.tick_tokens = sum(s.span.count for s in scheduled)
        self._copy_pages(scheduled)
        return scheduled

    def _copy_pages(self, scheduled: list[Scheduled]) -> None:
        """All at once, and before anything is written: a page may be a source here and another row's new page."""
        for name, model in self._models.items():
            copies = [pair for s in scheduled if s.span.row.model == name for pair in s.copies]
            if copies:
                model.attention.copy_pages(copies)

    # encode

    def _sources_due(self) -> list[SourceDue]:
        return [SourceDue(live, memory) for live in self.scheduler.running for memory in live.reserved]

    def _encode(self, sources: Sequence[SourceDue]) -> None:
        for name, encoder in self._encoders.items():
            due = [source for source in sources if source.memory.model == name]
            if due:
                encoder.encode(pack_sources([d.memory for d in due], self._models[name].attention.page_size))
                self.encoded_sources += len(due)
            for source in due:
                length = source.memory.length
                source.memory.table.length = length
                source.live.num_encoded += length
                self.tick_tokens += length
                self.computed_tokens += length

    # forward

    def _forward_and_read(self, scheduled: Sequence[Scheduled]) -> None:
        copy = HostCopy()
        parts = [enqueue_reads(forwarded, copy) for forwarded in self._forward(scheduled)]
        copy.send()
        if len(scheduled) == self.tick_rows:
            self.ahead.launch(parts)  # before the wait for this tick's numbers
        self._read(parts, copy)

    def _forward(self, scheduled: Sequence[Scheduled]) -> Iterator[Forwarded]:
        """Each to be read before the next runs. What was launched ahead has only to be taken."""
        guesses = self.ahead.take()
        for name, model in self._models.items():
            own = [s for s in scheduled if s.span.row.model == name]
            taken, rest = self.ahead.split(model, guesses.get(name), own)
            if taken is not None:
                yield taken
            if rest:
                yield forward(model, rest)

    # read

    def _read(self, parts: Sequence[Enqueued], copy: HostCopy) -> None:
        copy.fetch()
        collected = [(part.owners, [reading for s in part.slices for reading in s.collect()]) for part in parts]
        # From here on it counts: what raises above leaves no trace, so that fewer requests can try again.
        for part in parts:
            for scheduled in part.scheduled:
                self._commit(scheduled.live, scheduled.span)
        for owners, readings in collected:
            for scheduled, reading in zip(owners, readings, strict=True):
                self._note(scheduled, reading)

    def _commit(self, live: LiveRequest, span: Span) -> None:
        """The span's keys and values are in the cache now."""
        row = span.row
        row.table.length += span.count
        live.num_computed += span.count
        self.computed_tokens += span.count
        self._caches[row.model].publish(row.table, row.log.ids, row.salted(live.salt), row.indexable_length)

    def _note(self, scheduled: Scheduled, reading: Reading | Unreadable) -> None:
        live = scheduled.live
        if live.id not in self._live:  # failed by an earlier reading of this tick
            return
        if isinstance(reading, Unreadable):
            self._fail(live, ALL_EXCLUDED if reading.is_excluded else _NOT_FINITE)
        else:
            scheduled.work.readings.append(reading)

    # advance

    def _advance(self) -> None:
        for live in list(self.scheduler.running):
            if live.id in self._live and live.is_move_done:
                self.scheduler.note_step(live, self._clock())
                if live.first_token_at is None:
                    live.first_token_at = self._clock()
                try:
                    seen = Observation(tuple(w.view for w in live.works))
                    self._apply(live, live.strategy.step(seen))
                except Exception as error:
                    self._fail(live, failure_of(error))

    def _apply(self, live: LiveRequest, move: Move) -> None:
        """Commit what the move emits and turn its feeds into works; rows neither fed nor held are freed."""
        self._tell(live, move)
        if not move.feeds:
            self._end(live)
            return
        rows: dict[RowId, Row] = {row_id: live.rows[row_id] for row_id in move.hold}
        works = self._feed_all(live, move)
        rows |= {work.row.id: work.row for work in works}
        for row_id, row in live.rows.items():
            if row_id not in rows:
                self._caches[row.model].free(row.table)
        live.rows, live.works = rows, works

    def _feed_all(self, live: LiveRequest, move: Move) -> list[Work]:
        """The works of the move's feeds. New rows are the request's at once: it may fail before the last feed."""
        kept = set(move.hold)
        last_use = {feed.parent: at for at, feed in enumerate(move.feeds) if not isinstance(feed.parent, Open)}
        works = []
        for at, feed in enumerate(move.feeds):
            is_reused = not isinstance(feed.parent, Open) and last_use[feed.parent] == at and feed.parent not in kept
            row = self._row_for(live, feed, is_reused=is_reused)
            live.rows[row.id] = row
            works.append(self._feed(row, feed))
        return works

    def _tell(self, live: LiveRequest, move: Move) -> None:
        """What the move has to say, to the output and to the counters."""
        live.num_drafted += move.drafted
        live.num_accepted += move.accepted
        self.drafted_tokens += move.drafted
        self.accepted_tokens += move.accepted
        if move.emit or move.prompt or move.trace or move.vector:
            output = self._output(live)
            output.emits.extend(move.emit)
            output.prompt = move.prompt or output.prompt
            output.vector = move.vector or output.vector
            output.trace.extend(move.trace)

    def _row_for(self, live: LiveRequest, feed: Feed, *, is_reused: bool) -> Row:
        """The row a feed continues: a new one, the parent itself at its last use, or a fork of it."""
        if isinstance(feed.parent, Open):
            if feed.parent.model not in self._models:
                raise ValueError(f"no model {feed.parent.model!r}")
            num_prompt = len(feed.tokens) - feed.num_injected
            memory = self._memory(live, feed.parent)
            return Row(self._new_row_id(), feed.parent.model, num_prompt=num_prompt, memory=memory)
        parent = live.rows[feed.parent]
        if is_reused:
            return parent
        return Row(
            self._new_row_id(),
            parent.model,
            parent.log.fork(),
            self._caches[parent.model].fork(parent.table),
            parent.num_prompt,
            embeds=dict(parent.embeds),
            memory=parent.memory,
        )

    def _memory(self, live: LiveRequest, opened: Open) -> EncoderMemory | None:
        """A source as that model's encoder reads it: one for all of the request's rows that have it."""
        if opened.model not in self._encoders:
            return None
        key = (opened.model, opened.source_ids)
        if key not in live.memories:
            ids = np.array(opened.source_ids or live.request.source_ids, dtype=np.int64)
            mark = _digest(ids) if opened.source_ids else b""
            live.memories[key] = EncoderMemory(opened.model, ids, mark=mark)
        return live.memories[key]

    def _feed(self, row: Row, feed: Feed) -> Work:
        """Write the feed into the row's log and forget what it drops."""
        cache = self._caches[row.model]
        if feed.drop:
            row.truncate_log(row.log.length - feed.drop)
            cache.truncate(row.table, row.log.length)
        first = row.log.length
        if feed.embeds is not None:
            row.append_embeds(feed.embeds)
        num_seen = len(feed.tokens) - feed.num_injected
        row.append_tokens(feed.tokens[:num_seen], is_injected=False)
        row.append_tokens(feed.tokens[num_seen:], is_injected=True)
        if row.log.length == 0:
            raise ValueError("a feed left its row empty")
        if row.log.length == first:  # nothing new: run the last position again to read it
            first -= 1
            cache.truncate(row.table, first)
        return Work(row, feed, first)

    def _end(self, live: LiveRequest, failure: Failure | None = None) -> None:
        now = self._clock()
        admitted = live.admitted_at if live.admitted_at is not None else now
        first = live.first_token_at if live.first_token_at is not None else now
        output = self._output(live)
        output.failure = failure
        output.usage = Usage(
            cached_tokens=min(live.num_cached, len(live.request.prompt_ids)),  # pauses are cached too
            computed_tokens=live.num_computed + live.num_encoded,
            queue_seconds=admitted - live.submitted_at,
            prefill_seconds=first - admitted,
            decode_seconds=now - first,
            preemptions=live.num_preemptions,
            drafted=live.num_drafted,
            accepted=live.num_accepted,
        )
        del self._live[live.id]
        self.scheduler.remove(live)

    def _fail(self, live: LiveRequest, failure: Failure) -> None:
        self._end(live, failure)

    def _output(self, live: LiveRequest) -> Output:
        return self._outputs.setdefault(live.id, Output(live.id))

    def _new_live(self, request_id: int, request: Request) -> LiveRequest:
        salt = (request.cache_salt if self._shares_prefixes else f"{request_id}/{request.cache_salt}").encode()
        if request.source_ids:  # what rows cache depends on it
            salt += _digest(np.array(request.source_ids, dtype=np.int64))
        return LiveRequest(
            id=request_id,
            request=request,
            strategy=NotBegun(),
            pipeline=NEUTRAL,
            salt=salt,
            arrival=self.scheduler.next_arrival(),
            submitted_at=self._clock(),
        )

    def _new_row_id(self) -> RowId:
        self._num_rows += 1
        return RowId(self._num_rows)

    def _refusal(self, request: Request) -> Failure | None:
        """Why the request can never run here, if so."""
        missing = [name for name in request.max_rows_in if name not in self._models]
        if missing:
            return Failure("no_model", f"the request needs a {missing[0]} model and the server has none")
        needing = [name for name in request.max_rows_in if (name in self._encoders) != bool(request.source_ids)]
        if needing:
            return Failure("no_model", f"the {needing[0]} model {_needs(needing[0] in self._encoders)} a source")
        if not self._fits(request):
            return Failure("never_fits", "the request needs more KV cache or rows than the server has")
        return None

    def _fits(self, request: Request) -> bool:
        """Whether the request can possibly run, alone. One that may end early is tried; it is ended when it outgrows a
        cache all the same."""
        return (
            request.max_rows <= self._max_rows
            and request.max_length <= self._max_model_len
            and all(len(s) <= encoder.max_source_len for encoder in self._encoders.values() for s in request.sources)
            and all(_can_hold(self._caches[name], request, count) for name, count in request.max_rows_in.items())
        )


def _digest(source_ids: np.ndarray) -> bytes:
    return b"/" + hashlib.blake2b(source_ids.tobytes()).digest()


def _needs(has_encoder: bool) -> str:
    return "needs" if has_encoder else "cannot read"


def _can_hold(cache: PageCache, request: Request, num_rows: int) -> bool:
    """Whether so many rows fit at the length they take for sure, full prompt pages and the sources' shared."""
    shared = len(request.prompt_ids) // cache.page_size
    own = cache.pages_for(request.certain_length) - shared
    usable = cache.num_usable - sum(cache.pages_for(len(source)) for source in request.sources)
    return cache.pages_for(request.max_length) <= usable and shared + num_rows * own <= usable

"""The engine: add, cancel, tick. It knows rows, pages and Moves, and no strategy by name.

A tick packs the rows that are due, encodes the sources that are due, runs one ragged forward per model, reads what the
strategies asked for, and advances the strategies whose rows have all run. What a row reads depends on its own log (and
its request's source) alone; that is the exactness contract.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from decoding.contract.params import Request
from decoding.device import HostCopy
from decoding.engine.encoder_memory import EncoderMemory, source_digest
from decoding.engine.forward import Forwarded, enqueue_reads, forward
from decoding.engine.isolation import Isolation, failure_of, is_of_the_device
from decoding.engine.launch_ahead import LaunchAhead
from decoding.engine.limits import Limits, refusal
from decoding.engine.moves import Moves
from decoding.engine.output import Failure, Output, Usage
from decoding.engine.packing import Span, pack_sources
from decoding.engine.placed import Placed
from decoding.engine.reading import Unreadable
from decoding.engine.request import LiveRequest
from decoding.engine.scheduler import Scheduled, Scheduler
from decoding.engine.tools import RowTools
from decoding.engine.turns import Launched, Turns, landed
from decoding.engine.vocabulary import Vocabulary
from decoding.seam import Move, NothingToDraw, Observation, Reading, Strategy, Tools
from decoding.stopping import Stopping

Build = Callable[[Request, Stopping, Tools], Strategy]

_NOT_FINITE = Failure("nan_logits", "the model's scores were not finite")


@dataclass(frozen=True, slots=True)
class SourceDue:
    """A source to encode, its memory's pages reserved."""

    live: LiveRequest
    memory: EncoderMemory


class Engine:
    """Runs requests to their end, all in one continuous batch. Single-threaded; raises nothing for a bad request.

    placed: the models by name. launches_ahead: what the next tick reads before this one is read: its forward, wherever
    that can be guessed, else everything for one of two groups of requests, where they are many.
    """

    def __init__(
        self,
        placed: Mapping[str, Placed],
        vocabulary: Vocabulary,
        limits: Limits,
        *,
        shares_prefixes: bool = True,
        launches_ahead: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._placed = placed
        self._vocabulary = vocabulary
        self._limits = limits
        self._shares_prefixes = shares_prefixes
        self._clock = clock
        self._pipelines = vocabulary.pipelines()
        self._live: dict[int, LiveRequest] = {}
        self._outputs: dict[int, Output] = {}
        self._moves = Moves(placed)
        caches = {name: each.cache for name, each in placed.items()}
        self.scheduler = Scheduler(caches, max_rows=limits.max_rows, tick_tokens=limits.tick_tokens)
        self._encoding = Isolation(self._encode, self.scheduler.give_way, self._end)
        self._decoding = Isolation(self._forward_and_read, self.scheduler.give_way, self._end)
        self.launch_ahead = LaunchAhead(placed, is_on=launches_ahead)
        self.turns = Turns(self._launch, self.launch_ahead, is_on=launches_ahead)
        self._launched: Launched | None = None  # what is to be read now, unless that has failed
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
        return sum(self.used_pages_in.values())

    @property
    def used_pages_in(self) -> dict[str, int]:
        return {name: each.cache.num_used for name, each in self._placed.items()}

    def add(self, request_id: int, request: Request, build: Build) -> None:
        """Queue a request; its strategy is built now and begins now, its rows run when the scheduler admits them."""
        live = self._new_live(request_id, request)
        self._live[request_id] = live
        self.scheduler.enqueue(live)
        failure = refusal(request, self._placed, self._limits)
        if failure is not None:
            self._end(live, failure)
            return
        try:
            self._apply(live, self._begun(live, build))
        except Exception as error:
            self._end(live, failure_of(error))

    def error_of(self, request: Request, build: Build) -> Exception | None:
        """What the request's strategy raises where it begins; nothing runs for it."""
        try:
            self._begun(self._new_live(-1, request), build)
        except Exception as error:
            return error
        return None

    def _begun(self, live: LiveRequest, build: Build) -> Move:
        request = live.request
        live.pipeline = self._pipelines.build(request.logits, request.stopping)
        live.strategy = build(request, self._vocabulary.stopping(request.stopping), RowTools(live, self._pipelines))
        return live.strategy.begin(request.prompt_ids)

    def read_vocabulary(self) -> None:
        """What grammars need of it, at once rather than when the first one comes."""
        if self._vocabulary.token_bytes and self._vocabulary.eos_token_ids:
            _ = self._pipelines.grammars

    def begin(self, request: Request) -> Future[Any] | None:
        """What `add` would wait for, under way in a thread; None where it waits for nothing."""
        return self._pipelines.begin(request.logits)

    def rest(self) -> None:
        """Nothing is left to do: forget what only running requests need. Raises cache.IntegrityError."""
        self._pipelines.rest()
        self.turns.rest()
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
        reserved = [(live, live.reserved) for live in self.scheduler.running if live.memories]
        self._encoding.run([SourceDue(live, memory) for live, memories in reserved for memory in memories])
        self._decode([s for s in scheduled if s.live.is_running])
        self._advance()
        self._pipelines.settle()
        outputs = list(self._outputs.values())
        self._outputs = {}
        return outputs

    def check_integrity(self) -> None:
        """Raise cache.IntegrityError unless every page is accounted for by a live row or memory, the index or the free
        list."""
        owners = [owner for live in self._live.values() for owner in live.owners]
        for name, each in self._placed.items():
            each.cache.check_integrity(owner.table for owner in owners if owner.model == name)

    # pack

    def _pack(self) -> list[Scheduled]:
        self.launch_ahead.settle()
        for live in self.scheduler.admit(self._clock()):
            self._output(live)  # says that the request no longer waits, long before its first token
        scheduled = self.scheduler.schedule()
        for live in self.scheduler.starved:
            self._end(live, Failure("never_fits", "the request outgrew the KV cache"))
        self.tick_rows = self.tick_tokens = 0
        self._copy_pages(scheduled)
        return scheduled

    def _copy_pages(self, scheduled: list[Scheduled]) -> None:
        """All at once, and before anything is written: a page may be a source here and another row's new page."""
        for name, each in self._placed.items():
            copies = [pair for s in scheduled if s.span.row.model == name for pair in s.copies]
            if copies:
                each.model.attention.copy_pages(copies)

    # encode

    def _encode(self, sources: Sequence[SourceDue]) -> None:
        for name, each in self._placed.items():
            due = [s for s in sources if s.memory.model == name and not s.memory.is_filled]
            if each.model.encoder is None or not due:
                continue
            each.model.encoder.encode(pack_sources([s.memory for s in due], each.model.attention.page_size))
            for source in due:
                length = source.memory.length
                each.cache.commit(source.memory.table, length)
                source.live.num_encoded += length
                self.tick_tokens += length
                self.computed_tokens += length
            self.encoded_sources += len(due)

    # forward

    def _decode(self, scheduled: list[Scheduled]) -> None:
        """Forward and read: what was scheduled, or the group whose turn it is to be read."""
        self._launched = self.turns.next(scheduled)
        if self._launched is not None:
            scheduled = landed(self._launched)
        self.tick_rows += len(scheduled)
        self.tick_tokens += sum([s.span.end - s.span.start for s in scheduled])
        self._decoding.run(scheduled)

    def _forward_and_read(self, scheduled: Sequence[Scheduled]) -> None:
        launched, self._launched = self._launched, None  # whoever tries again does so plainly
        if launched is None:
            launched = self._launch(scheduled)
            if len(scheduled) == self.tick_rows:
                self.launch_ahead.launch(launched.parts)  # before the wait for this tick's numbers
        self._read(launched, {s.live for s in scheduled})

    def _launch(self, scheduled: Sequence[Scheduled]) -> Launched:
        copy = HostCopy()
        parts = [enqueue_reads(forwarded, copy) for forwarded in self._forward(scheduled)]
        copy.send()
        return Launched(scheduled, parts, copy)

    def _forward(self, scheduled: Sequence[Scheduled]) -> Iterator[Forwarded]:
        """Each to be read before the next runs. What was launched ahead has only to be taken."""
        guesses = self.launch_ahead.take()
        for name, each in self._placed.items():
            own = [s for s in scheduled if s.span.row.model == name]
            taken, rest = self.launch_ahead.split(each.model, guesses.get(name), own)
            if taken is not None:
                yield taken
            if rest:
                yield forward(each.model, rest)

    # read

    def _read(self, launched: Launched, lives: Container[LiveRequest]) -> None:
        """For those; the others have gone since it was launched."""
        launched.copy.fetch()
        parts = launched.parts
        collected = [(part.owners, [reading for s in part.slices for reading in s.collect()]) for part in parts]
        # From here on it counts: what raises above leaves no trace, so that fewer requests can try again.
        for part in parts:
            for scheduled in part.scheduled:
                if scheduled.live in lives:
                    self._commit(scheduled.live, scheduled.span)
        for owners, readings in collected:
            for scheduled, reading in zip(owners, readings, strict=True):
                if scheduled.live in lives:
                    self._note(scheduled, reading)

    def _commit(self, live: LiveRequest, span: Span) -> None:
        """The span's keys and values are in the cache now."""
        row, cache = span.row, self._placed[span.row.model].cache
        count = span.end - span.start
        is_page_full = cache.commit(row.table, count)
        live.num_computed += count
        self.computed_tokens += count
        if is_page_full:
            cache.publish(row.table, row.log.ids, row.salted(live.salt), row.indexable_length)

    def _note(self, scheduled: Scheduled, reading: Reading | Unreadable) -> None:
        live = scheduled.live
        if live.id not in self._live:  # failed by an earlier reading of this tick
            return
        if isinstance(reading, Unreadable):
            self._end(live, failure_of(NothingToDraw()) if reading.is_excluded else _NOT_FINITE)
        else:
            scheduled.work.readings.append(reading)

    # advance

    def _advance(self) -> None:
        for live in list(self.scheduler.running):
            if live.id in self._live and live.is_move_done:
                if live.stepped_at is None:
                    self.scheduler.note_step(live, self._clock())
                if live.first_token_at is None:
                    live.first_token_at = self._clock()
                try:
                    seen = Observation(tuple([w.view for w in live.works]))
                    self._apply(live, live.strategy.step(seen))
                except Exception as error:
                    if is_of_the_device(error):
                        raise
                    self._end(live, failure_of(error))

    def _apply(self, live: LiveRequest, move: Move) -> None:
        """Say what the move emits, and do to the rows what it says; without feeds the request is over."""
        self._tell(live, move)
        if move.feeds:
            self._moves.apply(live, move)
        else:
            self._end(live)

    def _tell(self, live: LiveRequest, move: Move) -> None:
        """What the move has to say, to the output and to the counters."""
        if move.drafted:
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

    def _output(self, live: LiveRequest) -> Output:
        return self._outputs.setdefault(live.id, Output(live.id))

    def _new_live(self, request_id: int, request: Request) -> LiveRequest:
        salt = (request.cache_salt if self._shares_prefixes else f"{request_id}/{request.cache_salt}").encode()
        if request.source_ids:  # what rows cache depends on it
            salt += source_digest(np.array(request.source_ids, dtype=np.int64))
        return LiveRequest(
            id=request_id,
            request=request,
            salt=salt,
            arrival=self.scheduler.next_arrival(),
            submitted_at=self._clock(),
        )

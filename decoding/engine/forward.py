"""One model's forward over its share of a tick, and the reads that the share's rows asked for.

`forward` and `enqueue_reads` only launch device work. What was forwarded must be read before the model's next forward:
recorded forwards leave their result in memory that they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from decoding.attention.interface import Batch
from decoding.device import HostCopy
from decoding.engine.packing import pack
from decoding.engine.placed import Model
from decoding.engine.reading import HiddenStates, Read, ReadSlice, enqueue
from decoding.engine.scheduler import Scheduled


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What a forward left behind. batch_rows: where in its batch each of the scheduled spans is."""

    model: Model
    scheduled: list[Scheduled]
    batch_rows: Sequence[int]
    batch: Batch
    hidden: HiddenStates


@dataclass(frozen=True, slots=True)
class Enqueued:
    """Spans whose reads are launched. owners: of each read, in the order of the slices'."""

    scheduled: list[Scheduled]
    owners: list[Scheduled]
    slices: list[ReadSlice]

    @property
    def drawing(self) -> list[Scheduled]:
        """Whose each row of the slices' drawn ids is, one after the other."""
        owners = iter(self.owners)
        return [owner for part in self.slices for draws, owner in zip(part.draws, owners, strict=False) if draws]


def forward(model: Model, scheduled: list[Scheduled]) -> Forwarded:
    """Run the spans as one batch."""
    batch = pack([s.span for s in scheduled], model.attention.page_size)
    hidden = model.forward(batch, hidden_layers(scheduled))
    return Forwarded(model, scheduled, range(len(scheduled)), batch, hidden)


def hidden_layers(scheduled: Sequence[Scheduled]) -> tuple[int, ...]:
    """The layers that the forward must keep for them."""
    feeds = [s.work.feed for s in scheduled]
    kept = [want.hidden_layers for feed in feeds for want in (feed.want, feed.inner) if want.hidden_layers]
    return tuple(sorted({layer for layers in kept for layer in layers}))


def enqueue_reads(forwarded: Forwarded, copy: HostCopy) -> Enqueued:
    """Launch what the spans' rows want to see."""
    owners, reads = [], []
    offsets = forwarded.batch.query_starts.tolist()
    for batch_row, scheduled in zip(forwarded.batch_rows, forwarded.scheduled, strict=True):
        for read in _reads(scheduled, batch_row, offsets[batch_row]):
            owners.append(scheduled)
            reads.append(read)
    slices = enqueue(forwarded.model, forwarded.hidden, reads, copy)
    return Enqueued(forwarded.scheduled, owners, slices)


def _reads(scheduled: Scheduled, batch_row: int, offset: int) -> list[Read]:
    """The positions of the span that are wanted and not read yet."""
    live, work, span = scheduled.live, scheduled.work, scheduled.span
    row, feed = span.row, work.feed
    of_row = (live.pipeline, live.request.seed, row.log, row.num_prompt)
    if feed.inner.is_empty:
        last = row.log.length - 1
        if feed.want.is_empty or span.end <= last or work.readings:
            return []
        return [Read(offset + last - span.start, batch_row, last, feed.want, *of_row, None)]
    reads = []
    for position in range(max(work.next_read, span.start), span.end):
        want = work.want_at(position)
        if not want.is_empty:
            following = int(row.log.ids[position + 1]) if position < work.last else None
            index = offset + position - span.start
            reads.append(Read(index, batch_row, position, want, *of_row, following))
    return reads

"""The next tick's forward, launched before this tick is read, so that a GPU computes while the host reads and advances.

A row that draws one token, and fed the one it drew before or has just been fed its prompt, will most likely feed the
next one too. So the ids just drawn go, without leaving the device, into a forward of the position after. It is a guess
that is verified: the coming tick is planned as if there had been none, and a span that turns out to be what was guessed
takes the result; whatever else is due (who arrived, who wanted something else) runs in a forward of its own. Where that
is certain, only many rows are guessed. What nobody takes is as if it had never been: its keys and values lie beyond
what any row's table counts, in pages that no index holds, and whatever is written there next is launched behind it.

A forward depends on ids and positions alone. How scores are processed, and what is read of them, is not guessed: reads
are launched in their own tick, when the host knows every row's history. Hence penalties and grammars need no exception.

A tick without its host's share costs nothing on a CPU, which computes when it is told to: there this is off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from decoding.attention.interface import Batch
from decoding.device import indices
from decoding.engine.cache import PageCache
from decoding.engine.forward import Enqueued, Forwarded, hidden_layers
from decoding.engine.packing import Span, pack
from decoding.engine.placed import Model, Placed
from decoding.engine.reading import HiddenStates
from decoding.engine.request import Work
from decoding.engine.rows import Row
from decoding.engine.scheduler import Scheduled
from decoding.seam import Open, RowId

WORTH_A_FORWARD = 64
"""So many rows keep a host busy for as long as a GPU takes to read the weights once more, for the rows not guessed."""

PAUSE_TICKS = 64
"""Without a guess, after one that raised: memory, say, that suffices for one tick but not for two."""


@dataclass(frozen=True, slots=True)
class Guess:
    """A forward under way. By batch row: the work that draws what is fed here, its position, and the page of that."""

    works: list[Work]
    positions: list[int]
    pages: list[int]
    batch_row_of: dict[RowId, int]
    page_size: int
    batch: Batch
    hidden: HiddenStates
    layers: frozenset[int]

    def find(self, scheduled: Scheduled) -> int | None:
        """The batch row that ran just this span; None where the guess is another or wrong."""
        span, feed = scheduled.span, scheduled.work.feed
        at = self.batch_row_of.get(span.row.id)
        if at is None or span.is_probed or span.start != self.positions[at]:
            return None
        if span.row.table.pages[span.start // self.page_size] != self.pages[at]:  # it has lost its pages since
            return None
        is_known = feed.tokens == self.works[at].readings[-1].tokens and feed.embeds is None and not feed.num_injected
        return at if is_known and self.layers.issuperset(feed.want.hidden_layers) else None


@dataclass(slots=True)
class Counters:
    """Totals since start. Forwards that ran ahead, their rows, and those of the rows whose result was taken."""

    forwards: int = 0
    rows: int = 0
    taken: int = 0
    raised: int = 0


class LaunchAhead:
    """At most one forward per model is ahead."""

    def __init__(self, placed: Mapping[str, Placed], *, is_on: bool) -> None:
        self._placed = placed
        self._is_on = is_on
        self._guesses: dict[str, Guess] = {}
        self._reserved: list[Row] = []  # those that got pages for a guess alone
        self._works: dict[RowId, Work] = {}  # of the last tick that was launched whole
        self._pause = 0
        self.counters = Counters()

    @property
    def is_under_way(self) -> bool:
        return bool(self._guesses)

    def is_worth(self, scheduled: Sequence[Scheduled]) -> bool:
        """Whether a forward would be launched ahead if these ran as one."""
        guessed = sum(_draws_on(s, self._works.get(s.span.row.id)) for s in scheduled)
        return _is_worth(guessed, len(scheduled) - guessed)

    def note(self, scheduled: Sequence[Scheduled]) -> None:
        """What runs while nothing is launched ahead, for whoever draws on later."""
        self._works = {s.span.row.id: s.work for s in scheduled}

    def settle(self) -> None:
        """The rows' next feeds are known: give back the pages that none of them needs."""
        for row in self._reserved:
            self._placed[row.model].cache.trim(row.table, row.log.length)
        self._reserved = []

    def take(self) -> dict[str, Guess]:
        """The guesses made, by model. They are nobody else's afterwards, so that what raises is run again plainly."""
        self.settle()
        guesses, self._guesses = self._guesses, {}
        return guesses

    def split(
        self, model: Model, guess: Guess | None, scheduled: list[Scheduled]
    ) -> tuple[Forwarded | None, list[Scheduled]]:
        """What of the scheduled spans has been run already, and the rest."""
        if guess is None:
            return None, scheduled
        found = [(s, guess.find(s)) for s in scheduled]
        taken = [(s, at) for s, at in found if at is not None]
        self.counters.taken += len(taken)
        rest = [s for s, at in found if at is None]
        if not taken:
            return None, rest
        return Forwarded(model, [s for s, _ in taken], [at for _, at in taken], guess.batch, guess.hidden), rest

    def launch(self, parts: Sequence[Enqueued]) -> None:
        """Guess the tick after the one whose reads these parts are, and launch its forwards."""
        if not self._is_on:
            return
        before, self._works = self._works, {s.span.row.id: s.work for part in parts for s in part.scheduled}
        self._pause = max(self._pause - 1, 0)
        if self._pause:
            return
        try:
            for name, placed in self._placed.items():
                self._launch(name, placed, [p for p in parts if p.scheduled[0].span.row.model == name], before)
        except Exception:
            # Whose fault it is comes out when the same tick runs plainly.
            self._guesses = {}
            self._pause = PAUSE_TICKS
            self.counters.raised += 1

    def _launch(self, name: str, placed: Placed, parts: Sequence[Enqueued], before: Mapping[RowId, Work]) -> None:
        drawing = [s for part in parts for s in part.drawing]
        guessed = [i for i, s in enumerate(drawing) if _draws_on(s, before.get(s.span.row.id))]
        num_others = sum(len(part.scheduled) for part in parts) - len(guessed)
        if not _is_worth(len(guessed), num_others):
            return
        going = [i for i in guessed if drawing[i].span.row.log.length < drawing[i].live.max_length]
        spans = [Span(span.row, span.end, span.end + 1) for span in (drawing[i].span for i in going)]
        if not spans or not self._reserve(placed.cache, spans):
            return
        drawn = torch.cat([s.drawn[:, 0] for part in parts for s in part.slices if s.drawn is not None])  # [drawing]
        if len(going) < len(drawing):
            drawn = drawn[indices(going, drawn.device)]
        page_size = placed.model.attention.page_size
        batch = pack(spans, page_size, drawn)
        layers = hidden_layers([drawing[i] for i in going])
        hidden = placed.model.forward(batch, layers)
        self._guesses[name] = Guess(
            works=[drawing[i].work for i in going],
            positions=[span.start for span in spans],
            pages=(batch.slots // page_size).tolist(),
            batch_row_of={span.row.id: at for at, span in enumerate(spans)},
            page_size=page_size,
            batch=batch,
            hidden=hidden,
            layers=frozenset(layers),
        )
        self.counters.forwards += 1
        self.counters.rows += len(spans)

    def _reserve(self, cache: PageCache, spans: Sequence[Span]) -> bool:
        """Room for spans that follow the ones being written, which made the pages that they end in the rows' own."""
        wanting = [span for span in spans if not cache.has_room(span.row.table, span.end - span.row.table.length)]
        counts = [span.end - span.row.table.length for span in wanting]
        if sum(cache.pages_to_grow(span.row.table, n) for span, n in zip(wanting, counts, strict=True)) > (
            cache.num_available
        ):
            return False
        self._reserved += [span.row for span in wanting]
        for span, count in zip(wanting, counts, strict=True):
            cache.grow(span.row.table, count)
        return True


def _is_worth(num_guessed: int, num_others: int) -> bool:
    return not num_others or num_guessed >= max(num_others, WORTH_A_FORWARD)


def _draws_on(scheduled: Scheduled, before: Work | None) -> bool:
    """Whether the row draws one token here, and was fed its prompt or the one that it drew in the work before."""
    span, feed = scheduled.span, scheduled.work.feed
    want = feed.want
    if len(want.draws) != 1 or want.attention or not feed.inner.is_empty or span.end != span.row.log.length:
        return False
    if isinstance(feed.parent, Open):
        return True
    if before is None or not before.readings or feed.tokens != before.readings[-1].tokens:
        return False
    return len(feed.tokens) == 1 and feed.embeds is None and not feed.num_injected

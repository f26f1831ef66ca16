"""Does to a request's rows what its strategy's Move says: opens, forks, feeds, truncates and drops them.

After it the rows' logs are as the strategy wants them; the keys and values that they lack are for the coming ticks.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from decoding.engine.encoder_memory import EncoderMemory, source_digest
from decoding.engine.placed import Placed
from decoding.engine.request import LiveRequest, Work
from decoding.engine.rows import Row
from decoding.seam import Feed, Move, Open, RowId


class Moves:
    """Of all requests; hands out the rows' ids."""

    def __init__(self, placed: Mapping[str, Placed]) -> None:
        self._placed = placed
        self._num_rows = 0

    def apply(self, live: LiveRequest, move: Move) -> None:
        """Turn the move's feeds into works; rows neither fed nor held are freed."""
        if len(move.feeds) == 1 and move.feeds[0].parent in live.rows and len(live.rows) == 1 and not move.hold:
            live.works = [self._feed(row, move.feeds[0]) for row in live.rows.values()]  # a row goes on by itself
            return
        rows: dict[RowId, Row] = {row_id: live.rows[row_id] for row_id in move.hold}
        works = self._feed_all(live, move)
        rows |= {work.row.id: work.row for work in works}
        for row_id, row in live.rows.items():
            if row_id not in rows:
                self._placed[row.model].cache.free(row.table)
        live.rows, live.works = rows, works

    def _feed_all(self, live: LiveRequest, move: Move) -> list[Work]:
        """The works of the move's feeds. New rows are the request's at once: it may fail before the last feed."""
        kept = set(move.hold)
        last_use = {feed.parent: at for at, feed in enumerate(move.feeds) if not isinstance(feed.parent, Open)}
        works = []
        for at, feed in enumerate(move.feeds):
            if isinstance(feed.parent, Open):
                row = self._open(live, feed, feed.parent)
            else:
                row = live.rows[feed.parent]
                if last_use[feed.parent] != at or feed.parent in kept:
                    row = self._fork(row)
            live.rows[row.id] = row
            works.append(self._feed(row, feed))
        return works

    def _open(self, live: LiveRequest, feed: Feed, opened: Open) -> Row:
        if opened.model not in self._placed:
            raise ValueError(f"no model {opened.model!r}")
        num_prompt = len(feed.tokens) - feed.num_injected
        return Row(self._new_id(), opened.model, num_prompt=num_prompt, memory=self._memory(live, opened))

    def _fork(self, parent: Row) -> Row:
        return Row(
            self._new_id(),
            parent.model,
            parent.log.fork(),
            self._placed[parent.model].cache.fork(parent.table),
            parent.num_prompt,
            embeds=dict(parent.embeds),
            memory=parent.memory,
        )

    def _memory(self, live: LiveRequest, opened: Open) -> EncoderMemory | None:
        """A source as that model's encoder reads it: one for all of the request's rows that have it."""
        if self._placed[opened.model].model.encoder is None:
            return None
        key = (opened.model, opened.source_ids)
        if key not in live.memories:
            ids = np.array(opened.source_ids or live.request.source_ids, dtype=np.int64)
            mark = source_digest(ids) if opened.source_ids else b""
            live.memories[key] = EncoderMemory(opened.model, ids, mark=mark)
        return live.memories[key]

    def _feed(self, row: Row, feed: Feed) -> Work:
        """Write the feed into the row's log and forget what it drops."""
        if feed.drop:
            row.truncate_log(row.log.length - feed.drop)
            self._placed[row.model].cache.truncate(row.table, row.log.length)
        first = row.log.length
        if feed.embeds is not None:
            row.append_embeds(feed.embeds)
        if feed.num_injected:
            num_seen = len(feed.tokens) - feed.num_injected
            row.log.append(feed.tokens[:num_seen], is_injected=False)
            row.log.append(feed.tokens[num_seen:], is_injected=True)
        else:
            row.log.append(feed.tokens, is_injected=False)
        if row.log.length == 0:
            raise ValueError("a feed left its row empty")
        if row.log.length == first:  # nothing new: run the last position again to read it
            first -= 1
            self._placed[row.model].cache.truncate(row.table, first)
        return Work(row, feed, first)

    def _new_id(self) -> RowId:
        self._num_rows += 1
        return RowId(self._num_rows)

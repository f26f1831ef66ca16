"""KV pages: who owns which page, forks, truncation and the prefix index. Host bookkeeping only; no tensor lives here.

A page is written by its single owner. A page that is shared, or that the prefix index can hand to others, is copied
before it is written. Pages whose last owner left stay in the index, least recently used first out.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np


class OutOfPages(Exception):
    """No page is free and none can be evicted."""


class IntegrityError(Exception):
    """The books do not add up: a page leaked, is owned twice over, or is both free and owned."""


@dataclass(slots=True, eq=False)
class PageTable:
    """One row's pages in order, the positions already written, and the chain digests of its leading full pages.

    Pages beyond `length` are reserved for what is being written.
    """

    pages: list[int] = field(default_factory=list)
    length: int = 0
    digests: list[bytes] = field(default_factory=list)
    _array: np.ndarray = field(default_factory=lambda: np.empty(16, dtype=np.int64), repr=False)
    _num_known: int = 0  # how many of the pages it has

    def array(self, count: int) -> np.ndarray:
        """The first pages, int64 [count]; valid until the table changes. Only what is new since the last call is
        copied: a long row's list is long."""
        known = self._num_known
        if known < count:
            if count > len(self._array):
                grown = np.empty(2 * count, dtype=np.int64)
                grown[:known] = self._array[:known]
                self._array = grown
            self._array[known:count] = self.pages[known:count]
            self._num_known = count
        return self._array[:count]

    def replace(self, at: int, page: int) -> None:
        """Another page in that place."""
        self.pages[at] = page
        self._num_known = min(self._num_known, at)

    def keep(self, count: int) -> list[int]:
        """Forget the pages behind the first `count`, and return them."""
        rest = self.pages[count:]
        if rest:
            del self.pages[count:]
            self._num_known = min(self._num_known, count)
        return rest


class PageCache:
    """All pages of one model's KV cache. Page 0 is padding and never handed out."""

    def __init__(self, num_pages: int, page_size: int, *, has_prefix_index: bool = True) -> None:
        if num_pages < 2:
            raise ValueError("a KV cache needs at least 2 pages")
        self.num_pages = num_pages
        self.page_size = page_size
        self.has_prefix_index = has_prefix_index
        self._owners = [0] * num_pages
        self._free = list(range(num_pages - 1, 0, -1))
        self._digest_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_usable(self) -> int:
        """Pages that exist for rows."""
        return self.num_pages - 1

    @property
    def num_available(self) -> int:
        """Pages that can be handed out now: free ones and indexed ones nobody owns."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_usable - self.num_available

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def pages_to_grow(self, table: PageTable, num_tokens: int) -> int:
        """How many pages `grow` would take, the copy of a page that may not be written included."""
        new = self.pages_for(table.length + num_tokens) - len(table.pages)
        return new + (1 if num_tokens and self._must_copy(table) else 0)

    def has_room(self, table: PageTable, num_tokens: int) -> bool:
        """Whether `grow` would have nothing to do."""
        length, size = table.length, self.page_size
        if length + num_tokens > len(table.pages) * size:
            return False
        if length % size == 0:
            return True
        page = table.pages[length // size]
        return self._owners[page] == 1 and page not in self._digest_of

    def grow(self, table: PageTable, num_tokens: int) -> list[tuple[int, int]]:
        """Make room for num_tokens more positions. Returns page copies (source, destination) to do before writing.

        Raises OutOfPages with nothing changed.
        """
        needed = self.pages_to_grow(table, num_tokens)
        if needed > self.num_available:
            raise OutOfPages(f"{needed} pages wanted, {self.num_available} available")
        copies: list[tuple[int, int]] = []
        if num_tokens and self._must_copy(table):
            at = table.length // self.page_size
            old, new = table.pages[at], self._take()
            table.replace(at, new)
            self._release(old)
            copies.append((old, new))
        while len(table.pages) * self.page_size < table.length + num_tokens:
            table.pages.append(self._take())
        return copies

    def commit(self, table: PageTable, count: int) -> bool:
        """The table's next `count` positions are written, in the room that `grow` made. Returns whether `publish` may
        find a page that is full now."""
        table.length += count
        return self.has_prefix_index and table.length - len(table.digests) * self.page_size >= self.page_size

    def fork(self, table: PageTable) -> PageTable:
        """A second owner of every page that is written."""
        pages = table.pages[: self.pages_for(table.length)]
        for page in pages:
            self._owners[page] += 1
        return PageTable(pages, table.length, list(table.digests))

    def truncate(self, table: PageTable, length: int) -> None:
        """Forget all positions from `length` on."""
        if length >= table.length:
            return
        self.trim(table, length)
        del table.digests[length // self.page_size :]
        table.length = length

    def trim(self, table: PageTable, length: int) -> None:
        """Give back the pages that only positions from `length` on would need."""
        for page in reversed(table.keep(self.pages_for(length))):
            self._release(page)

    def free(self, table: PageTable) -> None:
        """Give every page back; the table is empty afterwards."""
        self.truncate(table, 0)
        for page in reversed(table.keep(0)):
            self._release(page)

    def adopt_prefix(self, table: PageTable, ids: np.ndarray, salt: bytes, limit: int) -> int:
        """Extend the table by indexed pages that hold ids' next full pages, at most up to `limit` positions.

        Returns the number of positions adopted.
        """
        start = table.length
        while (digest := self.next_digest(table, ids, salt, limit)) is not None:
            page = self._page_of.get(digest)
            if page is None:
                break
            self._idle.pop(page, None)
            self._owners[page] += 1
            table.pages.append(page)
            table.digests.append(digest)
            table.length += self.page_size
        return table.length - start

    def next_digest(self, table: PageTable, ids: np.ndarray, salt: bytes, limit: int) -> bytes | None:
        """What the table's next page will be known by; None for one that is begun, or not full at `limit`."""
        is_at_border = len(table.digests) * self.page_size == table.length and len(table.pages) == len(table.digests)
        if not self.has_prefix_index or not is_at_border or table.length + self.page_size > limit:
            return None
        return self._digest(table, ids, salt)

    def publish(self, table: PageTable, ids: np.ndarray, salt: bytes, limit: int) -> None:
        """Put the table's full pages up to position `limit` into the index.

        Ids holds the row's tokens from position 0.
        """
        if not self.has_prefix_index:
            return
        while (len(table.digests) + 1) * self.page_size <= min(table.length, limit):
            page = table.pages[len(table.digests)]
            digest = self._digest(table, ids, salt)
            table.digests.append(digest)
            if digest not in self._page_of:
                self._page_of[digest] = page
                self._digest_of[page] = digest

    def check_integrity(self, tables: Iterable[PageTable]) -> None:
        """Raise IntegrityError unless the owners counted over `tables` (all that live) explain every page."""
        counted = Counter(page for table in tables for page in table.pages)
        free, idle = set(self._free), set(self._idle)
        if len(free) != len(self._free):
            raise IntegrityError("a page is free twice")
        for page in range(1, self.num_pages):
            if counted[page] != self._owners[page]:
                raise IntegrityError(f"page {page}: {self._owners[page]} owners on the books, {counted[page]} found")
            is_indexed = page in self._digest_of
            expected = (page in free, page in idle)
            if expected != (counted[page] == 0 and not is_indexed, counted[page] == 0 and is_indexed):
                raise IntegrityError(f"page {page} is in the wrong list")
        if {d: p for p, d in self._digest_of.items()} != self._page_of or counted[0]:
            raise IntegrityError("the prefix index is torn")

    def _must_copy(self, table: PageTable) -> bool:
        """Whether the next position falls into a page that others can see."""
        if table.length % self.page_size == 0:
            return False
        page = table.pages[table.length // self.page_size]
        return self._owners[page] > 1 or page in self._digest_of

    def _digest(self, table: PageTable, ids: np.ndarray, salt: bytes) -> bytes:
        """Digest of the page after the table's digested ones: it stands for all tokens up to its end, and the salt."""
        at = len(table.digests) * self.page_size
        parent = table.digests[-1] if table.digests else hashlib.blake2b(salt, digest_size=16).digest()
        content = np.ascontiguousarray(ids[at : at + self.page_size], dtype=np.int64).tobytes()
        return hashlib.blake2b(parent + content, digest_size=16).digest()

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._digest_of.pop(page)]
        self._owners[page] = 1
        return page

    def _release(self, page: int) -> None:
        self._owners[page] -= 1
        if self._owners[page] > 0:
            return
        if page in self._digest_of:
            self._idle[page] = None
        else:
            self._free.append(page)

"""Parts of a batch's rows, some of which a thread attends with together: which keys they see, and in which pages.

A part is consecutive tokens of one row, int64 [4]: page table, first token, tokens, position of the first.
"""

from __future__ import annotations

from decoding.kernels.cpu.compiled import inner
from decoding.kernels.cpu.storage import PAGE
from decoding.kernels.cpu.vectors import word

PART_BYTES = 32


@inner
def keys_of(part):
    """How many keys the last query of a part sees, if its window is wide enough."""
    return word(part, 3) + word(part, 2)


@inner
def page_at(batch, part, key):
    """The page with that key of a part, or -1 behind its last key."""
    table = batch.tables + 8 * word(part, 0) * batch.table_width
    return word(table, key // PAGE) if key < keys_of(part) else -1


@inner
def sharing(batch, part, parts, key):
    """How many of the parts, from the first on, have keys from there on, in the same two pages."""
    first, second, count = page_at(batch, part, key), page_at(batch, part, key + PAGE), 0
    if first >= 0:
        count = 1
        while count < parts:
            other = part + PART_BYTES * count
            if page_at(batch, other, key) != first or page_at(batch, other, key + PAGE) != second:
                break
            count += 1
    return count


@inner
def tokens_of(part, parts):
    count = 0
    for each in range(parts):
        count += word(part + PART_BYTES * each, 2)
    return count


@inner
def first_key(part, parts, window):
    """The first that one of them sees."""
    first = word(part, 3)
    for each in range(1, parts):
        first = min(first, word(part + PART_BYTES * each, 3))
    return max(0, first - window + 1)


@inner
def end_of(part, parts):
    """Behind the last key that one of them sees."""
    end = 0
    for each in range(parts):
        end = max(end, keys_of(part + PART_BYTES * each))
    return end

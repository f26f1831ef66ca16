"""Page bookkeeping: forks, copies, truncation, the prefix index, and a check that notices every kind of leak."""

from __future__ import annotations

import random

import numpy as np
import pytest

from decoding.engine.cache import IntegrityError, OutOfPages, PageCache, PageTable

SALT = b""


def written(cache: PageCache, table: PageTable, count: int) -> list[tuple[int, int]]:
    copies = cache.grow(table, count)
    table.length += count
    return copies


def test_a_row_takes_pages_as_it_grows_and_gives_them_back() -> None:
    cache, table = PageCache(8, 4), PageTable()
    written(cache, table, 9)
    assert (len(table.pages), cache.num_used) == (3, 3)
    cache.free(table)
    assert cache.num_used == 0
    cache.check_integrity([table])


def test_page_zero_is_never_handed_out() -> None:
    cache, table = PageCache(4, 1), PageTable()
    written(cache, table, 3)
    assert 0 not in table.pages


def test_growing_beyond_the_pool_changes_nothing() -> None:
    cache, table = PageCache(3, 4), PageTable()
    with pytest.raises(OutOfPages):
        cache.grow(table, 9)
    assert cache.num_available == 2


def test_a_fork_copies_the_partial_page_only_and_only_for_the_first_writer() -> None:
    cache, table = PageCache(8, 4), PageTable()
    written(cache, table, 6)
    twin = cache.fork(table)
    old = table.pages[1]
    assert written(cache, twin, 1) == [(old, twin.pages[1])]
    assert twin.pages[0] == table.pages[0]
    assert written(cache, table, 1) == []
    cache.check_integrity([table, twin])


def test_a_fork_on_a_page_border_copies_nothing() -> None:
    cache, table = PageCache(8, 4), PageTable()
    written(cache, table, 4)
    twin = cache.fork(table)
    assert written(cache, twin, 1) == []


def test_truncation_returns_whole_pages_and_keeps_the_rest() -> None:
    cache, table = PageCache(8, 4), PageTable()
    written(cache, table, 11)
    cache.truncate(table, 5)
    assert (table.length, len(table.pages), cache.num_used) == (5, 2, 2)


def test_truncation_to_a_page_border_keeps_no_page_behind_it() -> None:
    """A page kept there would be written without a look at who else owns it."""
    cache, table = PageCache(8, 4), PageTable()
    written(cache, table, 11)
    cache.truncate(table, 4)
    assert (len(table.pages), cache.num_used) == (1, 1)


def test_a_page_written_anew_after_a_truncation_is_published_as_what_it_holds_now() -> None:
    """Its old content is indexed as another row's page, so it is the row's own and is not copied."""
    cache, first, second = PageCache(16, 4), PageTable(), PageTable()
    for table in (first, second):
        written(cache, table, 4)
        cache.publish(table, np.arange(4), SALT, 4)
    cache.truncate(second, 2)
    written(cache, second, 6)
    now = np.array([0, 1, 9, 9, 4, 5, 6, 7])
    cache.publish(second, now, SALT, 8)
    assert cache.adopt_prefix(PageTable(), np.arange(8), SALT, 8) == 4
    assert cache.adopt_prefix(PageTable(), now, SALT, 8) == 8


def test_a_published_prefix_is_adopted_by_the_same_ids_and_salt_only() -> None:
    cache, first = PageCache(16, 4), PageTable()
    ids = np.arange(10)
    written(cache, first, 10)
    cache.publish(first, ids, SALT, 10)
    other, salted, same = PageTable(), PageTable(), PageTable()
    assert cache.adopt_prefix(other, np.array([0, 1, 2, 9, 4, 5, 6, 7, 8]), SALT, 8) == 0
    assert cache.adopt_prefix(salted, ids, b"x", 9) == 0
    assert cache.adopt_prefix(same, ids, SALT, 9) == 8
    assert same.pages == first.pages[:2]
    cache.check_integrity([first, other, salted, same])


def test_adoption_stops_below_the_limit_so_that_something_is_left_to_run() -> None:
    cache, first, second = PageCache(16, 4), PageTable(), PageTable()
    ids = np.arange(8)
    written(cache, first, 8)
    cache.publish(first, ids, SALT, 8)
    assert cache.adopt_prefix(second, ids, SALT, 7) == 4


def test_a_page_means_its_whole_history_and_not_just_its_own_ids() -> None:
    cache, first, second = PageCache(16, 2), PageTable(), PageTable()
    written(cache, first, 4)
    cache.publish(first, np.array([1, 2, 3, 4]), SALT, 4)
    assert cache.adopt_prefix(second, np.array([9, 9, 3, 4, 5]), SALT, 4) == 0


def test_freed_pages_stay_adoptable_until_the_least_recently_used_is_evicted() -> None:
    cache, first = PageCache(4, 2), PageTable()
    ids = np.arange(4)
    written(cache, first, 4)
    cache.publish(first, ids, SALT, 4)
    cache.free(first)
    assert cache.num_available == 3
    big = PageTable()
    written(cache, big, 4)  # takes the one free page and evicts one of the two idle ones
    again = PageTable()
    assert cache.adopt_prefix(again, ids, SALT, 4) == 2, "a row's last pages go first: the others are of no use without"
    cache.check_integrity([big, again])


def test_a_row_that_writes_into_a_published_page_copies_it_first() -> None:
    cache, table = PageCache(8, 4), PageTable()
    written(cache, table, 4)
    cache.publish(table, np.arange(4), SALT, 4)
    cache.truncate(table, 2)
    old = table.pages[0]
    assert written(cache, table, 1) == [(old, table.pages[0])]
    adopted = PageTable()
    assert cache.adopt_prefix(adopted, np.arange(5), SALT, 4) == 4
    assert adopted.pages == [old]


def test_positions_beyond_the_limit_are_never_published() -> None:
    cache, table = PageCache(8, 2), PageTable()
    written(cache, table, 6)
    cache.publish(table, np.arange(6), SALT, 3)
    assert cache.adopt_prefix(PageTable(), np.arange(6), SALT, 6) == 2


def test_the_check_notices_a_leaked_page() -> None:
    cache, table = PageCache(8, 4), PageTable()
    written(cache, table, 5)
    with pytest.raises(IntegrityError, match="owners"):
        cache.check_integrity([])


def test_the_check_notices_a_page_owned_behind_the_books() -> None:
    cache, table = PageCache(8, 4), PageTable()
    written(cache, table, 5)
    with pytest.raises(IntegrityError):
        cache.check_integrity([table, PageTable([table.pages[0]], 4)])


def test_random_histories_keep_the_books_straight() -> None:
    rng = random.Random(7)
    cache = PageCache(24, 4)
    rows: list[tuple[PageTable, list[int]]] = []
    for _ in range(3000):
        action = rng.randrange(5)
        if action == 0 or not rows:
            table, ids = PageTable(), [rng.randrange(2) for _ in range(rng.randrange(1, 12))]
            cache.adopt_prefix(table, np.array(ids), SALT, len(ids) - 1)
            rows.append((table, ids))
        table, ids = rows[rng.randrange(len(rows))]
        if action == 1:
            rows.append((cache.fork(table), list(ids)))
        elif action == 2 and table.length:
            keep = rng.randrange(table.length)
            cache.truncate(table, keep)
            del ids[keep:]
        elif action == 3:
            ids += [rng.randrange(2) for _ in range(rng.randrange(4))]
        pending = len(ids) - table.length
        if action == 4 or cache.pages_to_grow(table, pending) > cache.num_available:
            cache.free(table)
            rows = [r for r in rows if r[0] is not table]
        else:
            written(cache, table, pending)
            cache.publish(table, np.array(ids), SALT, len(ids))
        cache.check_integrity(t for t, _ in rows)
    for table, _ in rows:
        cache.free(table)
    assert cache.num_used == 0
    cache.check_integrity([])


def test_a_tables_array_follows_its_pages_whatever_becomes_of_them() -> None:
    """It is kept from tick to tick, and only what is new is copied."""
    rng, cache = random.Random(4), PageCache(400, 2)
    tables = [PageTable()]
    for _ in range(600):
        table = rng.choice(tables)
        act = rng.randrange(6)
        if act <= 2 and cache.num_available > 20:
            written(cache, table, rng.randrange(1, 9))
        elif act == 3:
            cache.truncate(table, rng.randrange(table.length + 1))
        elif act == 4 and len(tables) < 8:
            tables.append(cache.fork(table))
        elif act == 5 and len(tables) > 1:
            cache.free(table)
            tables.remove(table)
        for each in tables:
            count = rng.randrange(len(each.pages) + 1)
            assert each.array(count).tolist() == each.pages[:count]
    assert any(len(table.pages) > 16 for table in tables)


def test_there_is_room_exactly_where_growing_takes_no_page() -> None:
    cache, table = PageCache(20, 4), PageTable()
    assert not cache.has_room(table, 1)
    written(cache, table, 3)
    assert cache.has_room(table, 1)
    assert not cache.has_room(table, 2)
    cache.grow(table, 5)
    assert cache.has_room(table, 5)
    twin = cache.fork(table)
    assert not cache.has_room(table, 1), "the page is the fork's too, and must be copied first"
    assert not cache.has_room(twin, 1)

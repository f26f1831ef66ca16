"""Room and Retry-After of the queue."""

from __future__ import annotations

from server.queue.waiting import WaitingRows


def test_retry_after_follows_the_rate_of_the_last_starts() -> None:
    waiting = WaitingRows(100)
    waiting.add(60)
    for second in range(1, 11):  # 2 rows a second
        waiting.start(2, float(second))
    assert waiting.num_rows == 40
    assert waiting.retry_after(11.0) == 20


def test_retry_after_is_a_whole_number_of_seconds_within_bounds() -> None:
    waiting = WaitingRows(100)
    assert waiting.retry_after(0.0) == 5  # nothing is known
    waiting.add(2)
    waiting.start(1, 10.0)
    assert waiting.retry_after(10.0) == 1
    waiting.add(10_000)
    assert waiting.retry_after(11.0) == 60


def test_starts_of_long_ago_are_forgotten() -> None:
    waiting = WaitingRows(100)
    waiting.add(2)
    waiting.start(1, 0.0)
    assert waiting.retry_after(1000.0) == 5


def test_there_is_room_up_to_the_limit_and_for_one_request_beyond_it() -> None:
    waiting = WaitingRows(4)
    assert waiting.has_room(9)
    waiting.add(3)
    assert waiting.has_room(1)
    assert not waiting.has_room(2)

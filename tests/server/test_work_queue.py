"""Work in threads of its own: how much runs at once, how much waits, and what becomes of work that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from server.errors import ApiError
from server.work_queue import WorkQueue
from tests.server.world import SECONDS, until


class Work:
    """Calls that wait to be let go."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.go = threading.Event()

    def __call__(self, number: int) -> int:
        self.begun.append(number)
        assert self.go.wait(SECONDS)
        return number


@pytest.fixture
async def work() -> AsyncIterator[Work]:
    work = Work()
    yield work
    work.go.set()


def started(queue: WorkQueue, work: Work, *numbers: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(queue.run(work, number)) for number in numbers]


async def assert_full(queue: WorkQueue) -> None:
    with pytest.raises(ApiError, match="too many requests wait for it") as refused:
        await asyncio.wait_for(queue.run(int), SECONDS)
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "2"})


async def test_no_more_runs_than_there_are_threads(work: Work) -> None:
    queue = WorkQueue("it", 2)
    tasks = started(queue, work, *range(5))
    await until(lambda: len(work.begun) == 2)
    assert sorted(work.begun) == [0, 1]
    work.go.set()
    assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4]


async def test_what_waits_is_counted_and_the_rest_refused(work: Work) -> None:
    queue = WorkQueue("it", 1, max_waiting=2)
    tasks = started(queue, work, 0, 1, 2)
    await until(lambda: work.begun == [0])
    await assert_full(queue)
    work.go.set()
    assert await asyncio.gather(*tasks) == [0, 1, 2]
    assert await queue.run(work, 4) == 4


async def test_what_nobody_waits_for_is_never_begun(work: Work) -> None:
    queue = WorkQueue("it", 1, max_waiting=1)
    first, second = started(queue, work, 0, 1)
    await until(lambda: work.begun == [0])
    second.cancel()
    await asyncio.wait({second})
    (third,) = started(queue, work, 2)  # has the place of the second
    work.go.set()
    assert await asyncio.gather(first, third) == [0, 2]
    assert work.begun == [0, 2]


async def test_what_has_begun_keeps_its_thread_to_the_end(work: Work) -> None:
    queue = WorkQueue("it", 1, max_waiting=1)
    (first,) = started(queue, work, 0)
    await until(lambda: work.begun == [0])
    first.cancel()
    await asyncio.wait({first})
    (second,) = started(queue, work, 1)
    await asyncio.sleep(0)
    await assert_full(queue)
    work.go.set()
    assert await second == 1


async def test_a_turn_that_comes_to_who_has_just_gone_is_the_nexts(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = WorkQueue("it", 1)
    pass_on = queue._pass_on
    first, second, third = started(queue, work, 0, 1, 2)

    def pass_on_and_go() -> None:
        pass_on()
        second.cancel()

    monkeypatch.setattr(queue, "_pass_on", pass_on_and_go)
    work.go.set()
    async with asyncio.timeout(SECONDS):
        assert await asyncio.gather(first, third) == [0, 2]
    assert work.begun == [0, 2]


async def test_an_error_is_the_callers_and_frees_the_thread() -> None:
    queue = WorkQueue("it", 1)
    for _ in range(3):
        with pytest.raises(ValueError, match="invalid literal"):
            await queue.run(int, "x")

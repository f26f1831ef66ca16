"""Admission, deadlines, cancels, the drain, and that everything adds up afterwards."""

from __future__ import annotations

import asyncio
from math import ceil

import pytest

from decoding.contract.frames import Finished, Output, Stats, Tick
from server.errors import ApiError
from server.queue.ticket import Ticket
from server.settings.sections import QueueSettings
from tests.server.fake_worker import ANSWER, BURST, MASKED, NAN, NEVER_FITS, SLOW, SLOW_SECONDS, STALL, WAIT
from tests.server.world import SECONDS, Asked, World, ask, request, until, world

SMALL = QueueSettings(max_queue=4, queue_timeout=2 * SECONDS, request_timeout=3 * SECONDS)


def outcome_counts(w: World) -> dict[str, float]:
    outcomes = ("success", "length", "cancelled", "rejected", "error")
    counts = {o: w.count("requests_total", endpoint="completions", strategy="sampling", outcome=o) for o in outcomes}
    return {outcome: number for outcome, number in counts.items() if number}


async def failure_of(asked: Asked) -> ApiError:
    async with asyncio.timeout(SECONDS):
        with pytest.raises(ApiError) as failure:
            await asked.tokens()
    return failure.value


async def test_a_full_queue_is_refused_with_an_integer_retry_after() -> None:
    async with world(queue=SMALL) as w:
        for _ in range(4):
            w.ask(WAIT)
        with pytest.raises(ApiError) as refusal:
            w.batcher.reserve("completions", 1)
        assert (refusal.value.status, refusal.value.code) == (429, "queue_full")
        assert isinstance(refusal.value.retry_after, int)
        assert refusal.value.retry_after >= 1


async def test_the_queue_counts_rows_not_requests() -> None:
    async with world(queue=SMALL) as w:
        w.ask(WAIT, n=3)
        w.batcher.reserve("completions", 1)
        with pytest.raises(ApiError):
            w.batcher.reserve("completions", 2)


async def test_a_request_of_more_rows_than_the_queue_is_taken_when_nothing_waits() -> None:
    async with world(queue=SMALL) as w:
        assert len(await w.ask(ANSWER, n=6).tokens()) == 18


async def test_started_requests_no_longer_take_room_in_the_queue() -> None:
    async with world(queue=SMALL) as w:
        asked = [w.ask(STALL) for _ in range(4)]
        await until(lambda: w.count("queue_rows") == 0)
        w.ask(STALL)
        assert len(asked) == 4


async def test_a_reservation_left_without_submit_gives_its_room_back() -> None:
    async with world(queue=SMALL) as w:
        with w.batcher.reserve("completions", 4):
            assert w.count("queue_rows") == 4
            with pytest.raises(ApiError):
                w.batcher.reserve("completions", 1)
        assert w.count("queue_rows") == 0
        w.ask(ANSWER)


async def test_cancelling_frees_the_rows_at_once_and_tells_the_worker() -> None:
    async with world(queue=SMALL) as w:
        asked = [w.ask(WAIT) for _ in range(4)]
        await until(lambda: w.count("waiting_requests") == 4)
        for one in asked:
            one.cancel()
            one.cancel()
        assert w.count("queue_rows") == 0
        assert await asked[0].tokens() == []
        await until(lambda: w.count("waiting_requests") == 0)
        assert outcome_counts(w) == {"cancelled": 4}


async def test_a_cancelled_running_request_stops_costing_compute() -> None:
    async with world() as w:
        asked = w.ask(SLOW, num_tokens=10_000)
        await until(lambda: w.count("running_requests") == 1)
        asked.cancel()
        await until(lambda: w.count("running_requests") == 0)
        assert w.count("live_rows", strategy="sampling") == 0


async def test_waiting_too_long_is_a_503_and_counts_as_rejected() -> None:
    async with world(queue=QueueSettings(max_queue=10, queue_timeout=0.1, request_timeout=10)) as w:
        error = await failure_of(w.ask(WAIT))
        assert (error.status, error.code) == (503, "queue_timeout")
        assert error.retry_after is not None
        await until(lambda: w.count("waiting_requests") == 0)
        assert outcome_counts(w) == {"rejected": 1}


async def test_the_queue_timeout_spares_a_request_that_has_started() -> None:
    """A busy machine may take a second to start it."""
    async with world(queue=QueueSettings(max_queue=10, queue_timeout=1.5, request_timeout=SECONDS)) as w:
        assert len(await w.ask(SLOW, num_tokens=ceil(2 / SLOW_SECONDS)).tokens()) == ceil(2 / SLOW_SECONDS)


async def test_the_requests_own_deadline_is_a_504_that_comes_after_the_tokens_so_far() -> None:
    async with world() as w:
        asked = ask(w.batcher, SLOW, num_tokens=10_000, timeout=1.5)
        seen: list[Output] = []
        with pytest.raises(ApiError) as failure:  # noqa: PT012
            async for output in asked.outputs:
                seen.append(output)  # noqa: PERF401 - they must survive the error
        assert failure.value.status == 504
        assert seen
        await until(lambda: w.count("running_requests") == 0)
        assert outcome_counts(w) == {"error": 1}


async def test_the_servers_limit_holds_for_a_request_that_asks_for_more() -> None:
    async with world(queue=QueueSettings(max_queue=10, queue_timeout=5, request_timeout=0.1)) as w:
        assert (await failure_of(ask(w.batcher, STALL, timeout=1000.0))).status == 504


@pytest.mark.parametrize(
    ("kind", "status", "code", "outcome"),
    [
        (NEVER_FITS, 400, "context_length_exceeded", "rejected"),
        (MASKED, 400, "nothing_to_draw", "rejected"),
        (NAN, 500, "nan_logits", "error"),
    ],
)
async def test_the_workers_errors_become_api_errors(kind: int, status: int, code: str, outcome: str) -> None:
    async with world() as w:
        error = await failure_of(w.ask(kind))
        assert (error.status, error.code) == (status, code)
        assert outcome_counts(w) == {outcome: 1}
        assert await w.ask(ANSWER).tokens() == [11, 12, 13]


async def test_every_request_ends_in_exactly_one_outcome() -> None:
    async with world() as w:
        cancelled = w.ask(STALL)
        answers = [w.ask(ANSWER), w.ask(ANSWER, 50), w.ask(ANSWER, 50)]
        for asked in answers:
            await asked.tokens()
        cancelled.cancel()
        await failure_of(w.ask(NAN))
        assert outcome_counts(w) == {"length": 1, "success": 2, "cancelled": 1, "error": 1}
        assert w.count("queue_rows") == 0


async def test_several_prompts_of_one_request_count_as_one_under_the_gravest_outcome() -> None:
    async with world() as w:
        with w.batcher.reserve("completions", 2) as place:
            good, bad = place.submit([request(ANSWER), request(STALL)], strategy="sampling", timeout=None)
        assert [output async for output in good]
        bad.cancel()
        assert outcome_counts(w) == {"cancelled": 1}


async def test_while_loading_everything_is_refused_as_loading() -> None:
    async with world('{"load_seconds": 60}', is_awaited=False) as w:
        with pytest.raises(ApiError) as refusal:
            w.batcher.reserve("completions", 1)
        assert (refusal.value.status, refusal.value.code) == (503, "loading")
        with pytest.raises(ApiError) as unserved:
            _ = w.batcher.served
        assert unserved.value.status == 503


async def test_a_drain_refuses_what_is_new_and_lets_the_rest_finish() -> None:
    async with world() as w:
        running = w.ask(SLOW, num_tokens=8)
        tokens = asyncio.create_task(running.tokens())
        draining = asyncio.create_task(w.batcher.drain(SECONDS))
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as refusal:
            w.batcher.reserve("completions", 1)
        assert (refusal.value.status, refusal.value.code) == (503, "draining")
        assert refusal.value.retry_after is not None
        assert len(await tokens) == 8
        await asyncio.wait_for(draining, SECONDS)


async def test_a_drain_takes_in_what_was_reserved_before_it() -> None:
    async with world() as w:
        with w.batcher.reserve("completions", 1) as place:
            draining = asyncio.create_task(w.batcher.drain(SECONDS))
            await asyncio.sleep(0.05)
            assert not draining.done()
            (ticket,) = place.submit([request(ANSWER)], strategy="sampling", timeout=None)
        assert len([output async for output in ticket]) == 3
        await asyncio.wait_for(draining, SECONDS)


async def test_at_the_end_of_the_drain_the_rest_gets_an_explicit_error() -> None:
    async with world() as w:
        stuck = [w.ask(STALL), w.ask(WAIT)]
        await w.batcher.drain(0.05)
        for asked in stuck:
            error = await failure_of(asked)
            assert (error.status, error.code) == (503, "draining")
        await until(lambda: w.count("running_requests") + w.count("waiting_requests") == 0)


async def test_a_reader_wakes_once_for_all_outputs_of_a_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    wake_ups = 0
    sleep = Ticket._next_tick

    async def counted(ticket: Ticket) -> None:
        nonlocal wake_ups
        await sleep(ticket)
        wake_ups += 1

    monkeypatch.setattr(Ticket, "_next_tick", counted)
    async with world() as w:
        assert len(await w.ask(BURST, num_tokens=50).tokens()) == 50
    assert wake_ups == 1


async def test_outputs_for_requests_that_are_gone_are_dropped() -> None:
    async with world() as w:
        w.batcher.worker_ticked(
            Tick((Output(99, finished=Finished(0, 0, 0, 0, 0, 0)),), Stats(0, 0, {}, {}, 0, 0, 0, 0, 0, 0, 0))
        )
        assert await w.ask(ANSWER).tokens() == [11, 12, 13]

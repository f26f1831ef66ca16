"""The bridge to the worker, over real processes: death, silence, garbage, restarts, the end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import structlog

from server.errors import ApiError
from server.settings.sections import SupervisionSettings
from server.worker.mailbox import WorkerGaveUp, delay
from tests.server.fake_worker import ANSWER, DIE, GARBAGE, HANG, SPIN, STALL, WAIT
from tests.server.world import PATIENT, QUICK, SECONDS, request, until, world

# A busy machine's heartbeat comes in time
LENIENT = PATIENT.model_copy(update={"stall_seconds": 1.5, "stall_kill_seconds": 2.0})


async def test_outputs_of_a_request_arrive_in_order_and_end_with_finished() -> None:
    async with world() as w:
        outputs = [output async for output in w.ask(ANSWER, num_tokens=4).outputs]
    assert [chunk.token_ids for output in outputs for chunk in output.chunks] == [(11,), (12,), (13,), (14,)]
    assert [output.finished is not None for output in outputs] == [False, False, False, True]


@pytest.mark.parametrize("death", [DIE, GARBAGE])
async def test_a_worker_that_dies_fails_every_request_at_once_and_is_replaced(death: int) -> None:
    async with world() as w:
        bystanders = [w.ask(STALL), w.ask(WAIT)]
        culprit = w.ask(death)
        for asked in (*bystanders, culprit):
            async with asyncio.timeout(SECONDS):
                with pytest.raises(ApiError) as failure:
                    await asked.tokens()
            assert (failure.value.status, failure.value.code) == (503, "worker_lost")
        assert w.batcher.status != "ready"
        await until(lambda: w.batcher.status == "ready")
        assert await w.ask(ANSWER).tokens() == [11, 12, 13]
        assert w.count("worker_restarts_total") == 1


async def test_a_worker_killed_from_outside_is_replaced_and_leaves_no_zombie() -> None:
    async with world() as w:
        asked, first = w.ask(STALL), w.worker_pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(SECONDS):
            with pytest.raises(ApiError):
                await asked.tokens()
        await until(lambda: w.batcher.status == "ready")
        assert w.worker_pid != first
        assert not psutil.pid_exists(first)


async def test_a_silent_worker_is_stalled_first_and_then_replaced() -> None:
    async with world(supervision=QUICK) as w:
        asked = w.ask(HANG)
        await until(lambda: w.batcher.status == "stalled")
        with pytest.raises(ApiError) as refusal:
            w.batcher.reserve("completions", 1)
        assert (refusal.value.status, refusal.value.code) == (503, "stalled")
        async with asyncio.timeout(SECONDS):
            with pytest.raises(ApiError):
                await asked.tokens()
        await until(lambda: w.batcher.status == "ready")


async def test_a_worker_that_ticks_on_without_progress_is_replaced_too() -> None:
    async with world(supervision=QUICK) as w:
        asked, first = w.ask(SPIN), w.worker_pid
        await until(lambda: w.batcher.status == "stalled")
        async with asyncio.timeout(SECONDS):
            with pytest.raises(ApiError):
                await asked.tokens()
        await until(lambda: w.batcher.status == "ready")
        assert w.worker_pid != first


async def test_heartbeats_keep_an_idle_worker_ready() -> None:
    async with world(supervision=LENIENT) as w:
        pid = w.worker_pid
        await asyncio.sleep(LENIENT.stall_kill_seconds * 1.5)
        assert w.batcher.status == "ready"
        assert w.worker_pid == pid


async def test_a_model_that_cannot_be_loaded_ends_the_run_with_the_reason_and_no_second_try() -> None:
    async with world('{"crash_message": "unknown architecture"}', is_awaited=False) as w:
        with pytest.raises(WorkerGaveUp, match="could not be loaded: unknown architecture"):
            await w.supervision
        assert w.count("worker_restarts_total") == 1


async def test_tracebacks_are_logged_for_debugging_only() -> None:
    plan = '{"crash_message": "unknown architecture", "fault_message": "ValueError at x.py:1"}'
    with structlog.testing.capture_logs() as entries:
        async with world(plan, is_awaited=False) as w:
            with pytest.raises(WorkerGaveUp):
                await w.supervision
    debug = [entry for entry in entries if entry["log_level"] == "debug"]
    shown = [entry for entry in entries if entry["log_level"] != "debug"]
    assert [entry["lines"] for entry in debug] == [("Traceback", "its lines")] * 2
    assert "Traceback" not in str(shown)
    assert shown[0]["exception"] == "ValueError at x.py:1"
    assert "unknown architecture" in shown[1]["reason"]


async def test_a_worker_that_dies_while_loading_is_tried_again(tmp_path: Path) -> None:
    async with world(f'{{"lives": "{tmp_path}/lives", "doomed_lives": 2}}') as w:
        assert w.count("worker_restarts_total") == 2


async def test_after_too_many_losses_in_a_row_the_run_gives_up(tmp_path: Path) -> None:
    async with world(f'{{"lives": "{tmp_path}/lives", "doomed_lives": 9}}', is_awaited=False) as w:
        with pytest.raises(WorkerGaveUp, match=r"3 times in a row, last: .*exit status 7"):
            await w.supervision


async def test_a_worker_that_never_loads_is_killed_after_the_load_timeout() -> None:
    impatient = SupervisionSettings(load_timeout=0.6, worker_restarts=0, restart_delay=0.01)
    async with world('{"load_seconds": 60}', supervision=impatient, is_awaited=False) as w:
        with pytest.raises(WorkerGaveUp, match="silent"):
            await w.supervision


def test_the_delay_between_restarts_doubles_up_to_a_limit() -> None:
    assert [delay(0.5, losses) for losses in (1, 2, 3, 4, 20)] == [0.5, 1, 2, 4, 30]


async def test_a_worker_that_does_not_read_never_blocks_the_loop_and_closes_the_queue() -> None:
    async with world('{"stop_reading": true}') as w:
        long_prompt = request(ANSWER, *([9] * 400_000))
        for _ in range(12):
            with w.batcher.reserve("completions", 1) as place:
                place.submit([long_prompt], strategy="sampling", timeout=None)
            await asyncio.sleep(0)
            if w.mailbox.is_congested:
                break
        with pytest.raises(ApiError) as refusal:
            w.batcher.reserve("completions", 1)
        assert refusal.value.status == 429


async def test_stopping_ends_a_loading_worker_at_once() -> None:
    async with world('{"load_seconds": 60}', is_awaited=False) as w:
        await until(lambda: w.worker_pid is not None)
        async with asyncio.timeout(SECONDS):
            await w.mailbox.stop()
            await asyncio.wait({w.supervision})
        assert w.supervision.exception() is None


async def test_the_worker_stands_in_a_session_of_its_own() -> None:
    async with world() as w:
        assert w.worker_pid is not None
        assert os.getsid(w.worker_pid) != os.getsid(0)

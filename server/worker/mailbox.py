"""The only bridge to the decode worker: starts it, passes requests in and ticks out, watches it, restarts it.

What ticks mean is the listener's business (`server/queue/batcher.py`); the frames are `decoding/contract/frames.py`.
A worker that dies, goes silent, or ticks on with work to do and none done is replaced with exponential back-off; after
too many losses in a row, or when the first load fails, `run` raises WorkerGaveUp and the server exits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Literal, Protocol

import structlog

from decoding.contract.frames import Cancel, Crashed, Fault, FromWorker, Loaded, Open, Progress, Shutdown, Start, Tick
from server.settings.sections import SupervisionSettings
from server.worker.descriptors import SpareDescriptors
from server.worker.head_start import WORKER_COMMAND, HeadStart
from server.worker.process import WorkerProcess

MAX_RESTART_DELAY = 30.0
SHUTDOWN_SECONDS = 5.0
LOOK_SECONDS = 1.0  # at most between checks of the worker's silence: its limit changes when the model is loaded
LOAD_RESTARTS = 2  # of a worker that has never been loaded: a start that fails should fail soon
HEALTHY_SECONDS = 30.0  # losses are counted anew from a worker that was loaded for that long

WorkerStatus = Literal["loading", "ready", "stalled", "worker_down"]


class WorkerGaveUp(Exception):
    """The worker cannot be kept alive; the message is for the operator."""


class Listener(Protocol):
    """Who hears of the worker; every call comes from the event loop, in the order of the frames."""

    def worker_loaded(self, loaded: Loaded) -> None: ...

    def worker_ticked(self, tick: Tick) -> None: ...

    def worker_lost(self, reason: str) -> None: ...


class LoadListener(Protocol):
    """Who hears how far a worker is with loading the model."""

    def worker_progressed(self, progress: Progress) -> None: ...

    def worker_loaded(self, loaded: Loaded) -> None: ...


class Mailbox:
    def __init__(
        self,
        listener: Listener,
        settings: SupervisionSettings,
        command: Sequence[str] = WORKER_COMMAND,
        head_start: HeadStart | None = None,
    ) -> None:
        self._listener = listener
        self._settings = settings
        self._command = tuple(command)
        self._head_start = head_start
        self._opening: Open | None = None
        self._log = structlog.get_logger("mailbox")
        self._load_listener: LoadListener | None = None
        self._worker: WorkerProcess | None = None
        self._is_told = False
        self._last_progress = 0.0
        self._loaded_at: float | None = None
        self._was_ever_loaded = False
        self._is_down = False
        self._crash: Crashed | None = None
        self._losses = 0
        self._is_stopping = False
        self._stop = asyncio.Event()

    @property
    def status(self) -> WorkerStatus:
        if self._is_down:
            return "worker_down"
        if self._loaded_at is None:
            return "loading"
        return "stalled" if self._silence > self._settings.stall_seconds else "ready"

    @property
    def is_congested(self) -> bool:
        """So much is unsent that nothing should be added."""
        return self._worker is not None and self._worker.is_congested

    @property
    def is_told(self) -> bool:
        """Whether a worker runs that was told what to load; only such a one understands Shutdown."""
        return self._is_told

    def send_encoded(self, data: bytes) -> None:
        """Encoded Submit frames, all or none. The worker must be ready."""
        if self._worker is not None:
            self._worker.send_encoded(data)

    def cancel(self, request_id: int) -> None:
        if self._worker is not None:
            self._worker.send(Cancel(request_id))

    async def run(
        self, start: asyncio.Future[Start], load_listener: LoadListener | None = None, opening: Open | None = None
    ) -> None:
        """Keeps a worker alive until `stop`. Raises WorkerGaveUp, and whatever `start` ends with.

        A worker imports its libraries for seconds before it can load anything: what it is told then may come later.
        opening: what each is told at once.
        """
        self._opening = opening
        self._load_listener = load_listener
        with contextlib.closing(SpareDescriptors()) as spare:
            while not self._is_stopping:
                reason = await self._live(start, spare)
                if self._is_stopping:
                    return
                self._judge(reason)
                await self._pause(delay(self._settings.restart_delay, self._losses))

    async def stop(self) -> None:
        """Tells the worker to exit; `run` returns when it has, at the latest when it had to be killed."""
        self._is_stopping = True
        self._stop.set()
        if self._worker is not None:
            self._worker.send(Shutdown())
            patience = SHUTDOWN_SECONDS if self._loaded_at is not None else 0.0
            asyncio.get_running_loop().call_later(patience, self._worker.kill)

    def kill(self) -> None:
        """Ends the worker without a word, for a server that exits at once."""
        if self._worker is not None:
            self._worker.kill()

    async def _live(self, start: asyncio.Future[Start], spare: SpareDescriptors) -> str:
        """One worker from start to end; says how it ended."""
        self._loaded_at, self._crash, self._last_progress = None, None, _now()
        try:
            with spare.lent():  # nothing else can take them: until it has been started, no other task runs
                worker = await self._started()
        except OSError as error:
            return self._lose(f"it could not be started: {error.strerror}")
        self._worker, self._is_down = worker, False
        try:
            if self._opening is not None:
                worker.send(self._opening)
            worker.send(await start)
            self._is_told, self._last_progress = True, _now()
            reason = self._lose(await self._watch(worker))
        except BaseException:  # cancelled: leave no process behind
            worker.kill()
            raise
        finally:
            self._worker, self._is_told = None, False
            ending = await worker.reap()
        return f"{reason} ({ending})"

    async def _started(self) -> WorkerProcess:
        started = None if self._head_start is None else self._head_start.take(self._command)
        if started is not None:
            return await WorkerProcess.adopt(started, self._on_frame)
        return await WorkerProcess.spawn(self._command, self._on_frame)

    def _lose(self, reason: str) -> str:
        """Tells the listener at once, before the process is reaped."""
        if self._loaded_at is not None and _now() - self._loaded_at > HEALTHY_SECONDS:
            self._losses = 0
        self._worker, self._loaded_at, self._is_down = None, None, True
        self._listener.worker_lost(reason)
        return reason

    async def _watch(self, worker: WorkerProcess) -> str:
        """Waits for the worker's end, or kills it when it has been silent for too long."""
        while not await self._ended(worker, min(self._limit - self._silence, LOOK_SECONDS)):
            if self._silence >= self._limit:
                worker.kill()
                return f"silent, or without progress, for {self._limit:g} seconds"
        if self._crash is not None:
            return f"crashed during {self._crash.during}: {self._crash.message}"
        return "the worker ended"

    async def _ended(self, worker: WorkerProcess, seconds: float) -> bool:
        """Whether the worker ended within so many seconds.

        If it took longer to come back here, this process was stopped or busy: not the worker's silence.
        """
        asked = _now()
        has_ended = await worker.ended(seconds)
        late = max(0.0, _now() - asked - max(seconds, 0.0))
        self._last_progress = min(_now(), self._last_progress + late)
        return has_ended

    @property
    def _limit(self) -> float:
        return self._settings.load_timeout if self._loaded_at is None else self._settings.stall_kill_seconds

    @property
    def _silence(self) -> float:
        return _now() - self._last_progress

    def _judge(self, reason: str) -> None:
        """Counts the loss. Raises WorkerGaveUp if there is to be no other try."""
        self._losses += 1
        self._log.error("worker lost", reason=reason, losses=self._losses)
        if self._crash is not None:
            self._log.debug("traceback", lines=self._crash.trace)
        if self._crash is not None and not self._was_ever_loaded:
            raise WorkerGaveUp(f"the model could not be loaded: {self._crash.message}")
        restarts = self._settings.worker_restarts
        if self._losses > (restarts if self._was_ever_loaded else min(restarts, LOAD_RESTARTS)):
            raise WorkerGaveUp(f"the decode worker was lost {self._losses} times in a row, last: {reason}")

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return

    def _on_frame(self, frame: FromWorker) -> None:
        if not isinstance(frame, Tick) or _is_progress(frame):
            self._last_progress = _now()
        match frame:
            case Tick():
                self._listener.worker_ticked(frame)
            case Progress():
                if self._load_listener is not None:
                    self._load_listener.worker_progressed(frame)
            case Loaded():
                self._loaded_at, self._was_ever_loaded = self._last_progress, True
                self._listener.worker_loaded(frame)
                if self._load_listener is not None:
                    self._load_listener.worker_loaded(frame)
            case Fault():
                self._log.error("a request failed in the worker", exception=frame.message)
                self._log.debug("traceback", lines=frame.trace)
            case Crashed():
                self._crash = frame


def delay(first: float, losses: int) -> float:
    """Seconds to wait after that many losses in a row."""
    return min(first * 2.0 ** (losses - 1), MAX_RESTART_DELAY)


def _is_progress(tick: Tick) -> bool:
    """A sign of life is not enough while there is work: rows must run, or something must be said."""
    stats = tick.stats
    return bool(stats.tick_rows or tick.outputs) or not (stats.running or stats.waiting)


def _now() -> float:
    return asyncio.get_running_loop().time()

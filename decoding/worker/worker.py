"""The decode worker process: drain the mailbox, tick the engine, deliver. `python -m decoding.worker.worker FD`.

FD is one end of a socket pair inherited from the server; `frames.py` is the language on it. The process ignores SIGINT
and SIGTERM (the server decides when it ends, so that a drain can finish) and dies with its parent: at end of file on
the socket, and by the kernel's parent-death signal should the loop be stuck in a forward.
"""

from __future__ import annotations

import gc
import os

if __name__ == "__main__":
    gc.disable()  # until the model is loaded: a tenth of the start was spent looking for garbage among new modules
    # Read when torch is loaded. Its threads (libgomp's) would otherwise spin for milliseconds wherever they wait, and
    # so use up their turns while the one that they wait for is off its core.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import ctypes
import signal
import socket
import struct
import sys
import time
from collections import Counter
from concurrent.futures import Future
from typing import Any

import torch

from decoding.contract.frames import (
    Cancel,
    Chunk,
    Crashed,
    Fault,
    Finished,
    Loaded,
    Open,
    Progress,
    PromptScores,
    Shutdown,
    Start,
    Stats,
    Submit,
    ToWorker,
    TraceEvent,
    request_of,
)
from decoding.contract.frames import Output as OutputFrame
from decoding.contract.params import Request
from decoding.contract.plugin_loading import load_plugins
from decoding.contract.plugin_samples import Vocabulary
from decoding.contract.plugins import NO_PLUGINS, Plugins
from decoding.engine.engine import Engine
from decoding.engine.output import Output
from decoding.kernels import cpu as kernels
from decoding.model.model import Model
from decoding.seam import Emit
from decoding.strategies import Builder
from decoding.worker.assembly import build_engine
from decoding.worker.error_report import kind_and_place, load_cause, trace_of
from decoding.worker.kept.opening import open_model
from decoding.worker.link import Link, ParentGone
from decoding.worker.memory import give_back
from decoding.worker.plugin_trial import try_plugins
from decoding.worker.threads import Threads, default_threads
from decoding.worker.ticks import ticks_within

HEARTBEAT_SECONDS = 0.5
PREPARING_SECONDS = 0.01  # between two looks whether a grammar is compiled
MAX_TICK_BYTES = 16 << 20  # a quarter of what the server takes for a frame
COLLECTOR_THRESHOLDS = (50_000, 50, 100)
_PR_SET_PDEATHSIG = 1


class Worker:
    """One engine and the loop around it."""

    def __init__(
        self, link: Link, engine: Engine, vocab_size: int, threads: Threads, plugins: Plugins = NO_PLUGINS
    ) -> None:
        self._link = link
        self._engine = engine
        self._threads = threads
        self._vocab_size = vocab_size
        self._plugins = plugins
        self._build = Builder(plugins, vocab_size)
        self._last_sent = 0.0
        self._is_checked = False
        self._preparing: dict[int, tuple[Request, Future[Any]]] = {}  # by request id, in the order in which they came

    def run(self) -> None:
        """Until the parent is gone. Any other exception is a crash."""
        while True:
            self._drain()
            if self._engine.has_work:
                self._tick()
            else:
                self._rest()

    def _rest(self) -> None:
        """Nothing to do: prove once that nothing leaked, and let the server know that all is well."""
        if not self._is_checked:
            self._engine.rest()
            give_back()
            self._is_checked = True
        if time.monotonic() - self._last_sent >= HEARTBEAT_SECONDS:
            self._send((), 0.0)

    def _drain(self) -> None:
        """Take every frame that waits; sleep for one only while there is nothing to do."""
        timeout = 0.0 if self._engine.has_work else PREPARING_SECONDS if self._preparing else HEARTBEAT_SECONDS
        for frame in self._link.receive(timeout):
            self._take(frame)
        for request_id in [i for i, (_, preparation) in self._preparing.items() if preparation.done()]:
            self._engine.add(request_id, self._preparing.pop(request_id)[0], self._build)

    def _take(self, frame: ToWorker) -> None:
        if isinstance(frame, Submit):
            self._submit(frame)
        elif isinstance(frame, Cancel):
            self._cancel(frame.request_id)
        elif isinstance(frame, Shutdown):
            raise ParentGone

    def _submit(self, frame: Submit) -> None:
        """A second line behind the server's checks: what it let through must still not end the process."""
        try:
            request = request_of(frame, self._plugins)
            if request.highest_token_id >= self._vocab_size:
                raise ValueError("a token id beyond the vocabulary")
        except Exception as error:
            self._report(error)
            self._send((refused(frame.request_id),), 0.0)
            return
        preparation = self._engine.begin(request)
        if preparation is None:
            self._engine.add(frame.request_id, request, self._build)
        else:  # nobody waits for it but the request itself
            self._preparing[frame.request_id] = request, preparation

    def _cancel(self, request_id: int) -> None:
        _, preparation = self._preparing.pop(request_id, (None, None))
        is_wanted = any(other is preparation for _, other in self._preparing.values())
        if preparation is not None and not is_wanted:
            preparation.cancel()
        self._engine.cancel(request_id)

    def _tick(self) -> None:
        self._is_checked = False
        started = time.monotonic()
        outputs = self._engine.tick()
        for output in outputs:
            if output.failure is not None and output.failure.cause is not None:
                self._report(output.failure.cause)
        seconds = time.monotonic() - started
        self._send(tuple(output_frame(o) for o in outputs), seconds)
        self._threads.ticked(seconds)

    def _report(self, error: BaseException) -> None:
        self._link.send(Fault(kind_and_place(error), trace_of(error)))

    def _send(self, outputs: tuple[OutputFrame, ...], seconds: float) -> None:
        for tick in ticks_within(MAX_TICK_BYTES, outputs, self._stats(seconds)):
            self._link.send(tick)
        self._last_sent = time.monotonic()

    def _stats(self, seconds: float) -> Stats:
        engine, scheduler = self._engine, self._engine.scheduler
        live_rows: Counter[str] = Counter()
        for live in scheduler.running:
            live_rows[live.request.strategy.NAME] += len(live.rows)
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + len(self._preparing),
            live_rows=dict(live_rows),
            used_pages=engine.used_pages_in,
            tick_seconds=seconds,
            tick_rows=engine.tick_rows if seconds else 0,
            tick_tokens=engine.tick_tokens if seconds else 0,
            preemptions_total=scheduler.counters.preemptions,
            prefix_queries_total=scheduler.counters.prefix_queries,
            prefix_hits_total=scheduler.counters.prefix_hits,
            computed_tokens_total=engine.computed_tokens,
            drafted_total=engine.drafted_tokens,
            accepted_total=engine.accepted_tokens,
        )


def output_frame(output: Output) -> OutputFrame:
    """What a tick says of a request, as the server reads it."""
    prompt = output.prompt and PromptScores(output.prompt.logprobs, output.prompt.top)
    finished = None
    if output.usage is not None:
        usage, failure = output.usage, output.failure
        finished = Finished(
            cached_tokens=usage.cached_tokens,
            computed_tokens=usage.computed_tokens,
            queue_seconds=usage.queue_seconds,
            prefill_seconds=usage.prefill_seconds,
            decode_seconds=usage.decode_seconds,
            preemptions=usage.preemptions,
            error_code=failure.code if failure else None,
            error_message=failure.message if failure else None,
            drafted=usage.drafted,
            accepted=usage.accepted,
        )
    trace = tuple(TraceEvent(e.step, e.kind, dict(e.values)) for e in output.trace)
    chunks = tuple(_chunk(e) for e in output.emits)
    vector = struct.pack(f"<{len(output.vector)}f", *output.vector)
    return OutputFrame(output.request_id, chunks, prompt or None, finished, trace, vector)


def refused(request_id: int) -> OutputFrame:
    """The only output of a request that never reached the engine."""
    error = Finished(0, 0, 0.0, 0.0, 0.0, 0, "internal", "the request could not be understood")
    return OutputFrame(request_id, finished=error)


def _chunk(emit: Emit) -> Chunk:
    if emit.finish is None:
        return Chunk(emit.choice, emit.token_ids, emit.logprobs, emit.top)
    finish = emit.finish
    return Chunk(
        emit.choice,
        emit.token_ids,
        emit.logprobs,
        emit.top,
        finish.reason.value,
        finish.stop_reason,
        finish.score,
        dict(finish.figures) or None,
    )


def _die_with_parent() -> None:
    """Linux: the kernel kills this process when its parent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _load(start: Open | Start, directory: str, link: Link, prefix: str) -> Model:
    """The model of that directory; the server hears of it under the prefix."""
    torch.set_num_threads(start.threads or default_threads())
    return open_model(
        directory,
        device=start.device,
        dtype=start.dtype,
        quantize=start.quantize,
        progress=lambda stage, fraction: link.send(Progress(prefix + stage, fraction)),
        is_batch_invariant=start.batch_invariant,
    )


def _serve(link: Link) -> None:
    """Raises ParentGone or an OSError of the socket's once there is nobody to serve; exits with 1 after a crash."""
    during = "load"
    try:
        start, model = link.receive_one(), None
        if isinstance(start, Open):
            model = _load(start, start.model, link, "")
            start = link.receive_one()
        if not isinstance(start, Start):
            raise TypeError("the first frame must be Start, or Open and then Start")
        worker, loaded = _build(start, link, model)
        link.send(loaded)
        during = "tick"
        worker.run()
    except (ParentGone, BrokenPipeError, ConnectionResetError):
        raise
    except Exception as error:
        message = load_cause(error) if during == "load" else kind_and_place(error)
        link.send(Crashed(during, message, trace_of(error)))
        sys.exit(1)


def _build(start: Start, link: Link, model: Model | None = None) -> tuple[Worker, Loaded]:
    """model: as it was opened before."""
    plugins = load_plugins(start.plugins)
    model = model or _load(start, start.model, link, "")
    beside = {name: _load(start, path, link, f"{name} model: ") for name, path in start.beside.items()}
    threads = _threads(model, *beside.values())
    engine, loaded = build_engine(start, model, beside)
    vocabulary = Vocabulary(loaded.vocab_size, start.token_bytes)
    try_plugins(plugins, engine, Builder(plugins, loaded.vocab_size), vocabulary)
    _collect_rarely()
    return Worker(link, engine, loaded.vocab_size, threads, plugins), loaded


def _collect_rarely() -> None:
    """Ticks make and drop thousands of objects, none of them in cycles: where the collector looked as often as it does
    by itself, it took a tenth and more of a tick."""
    gc.collect()
    gc.enable()
    gc.freeze()  # what was loaded stays for good: the collector need not walk through it again and again
    gc.set_threshold(*COLLECTOR_THRESHOLDS)


def _threads(*models: Model) -> Threads:
    """What settles their number from tick to tick."""
    most = torch.get_num_threads() if models[0].info.device.type == "cpu" else 1
    is_compiled = all(model.is_compiled for model in models)
    if is_compiled:
        # Kernels have their own threads; a call of torch's waits for all of its, on busy cores for milliseconds.
        torch.set_num_threads(1)

    def use(count: int) -> None:
        if not is_compiled:
            torch.set_num_threads(count)
        kernels.limit_threads(count)

    return Threads(most, use)


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    try:
        with torch.inference_mode():
            _serve(link)
    except (ParentGone, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main()

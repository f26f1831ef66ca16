"""The decode worker process: drain the mailbox, tick the engine, deliver. `python -m decoding.worker FD`.

FD is one end of a socket pair inherited from the server; `frames.py` is the language on it. The process ignores SIGINT
and SIGTERM (the server decides when it ends, so that a drain can finish) and dies with its parent: at end of file on
the socket, and by the kernel's parent-death signal should the loop be stuck in a forward.
"""

from __future__ import annotations

import ctypes
import select
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator

import torch

from decoding.cache import PageCache
from decoding.engine import MAIN, Engine, Output
from decoding.frames import (
    Cancel,
    Chunk,
    Crashed,
    Finished,
    FrameSplitter,
    FromWorker,
    Loaded,
    Progress,
    PromptScores,
    Shutdown,
    Start,
    Stats,
    Submit,
    Tick,
    ToWorker,
    decode_to_worker,
    encode,
    request_of,
)
from decoding.frames import Output as OutputFrame
from decoding.memory import available_memory
from decoding.model import Model, load
from decoding.params import LogitsParams, Request, StoppingParams
from decoding.seam import Emit
from decoding.strategies import build

HEARTBEAT_SECONDS = 0.5
# Prefill tokens a tick: every running stream waits for them, so a CPU takes fewer. Both fill the machine.
CPU_TICK_TOKENS = 256
GPU_TICK_TOKENS = 8192
_PR_SET_PDEATHSIG = 1


class ParentGone(Exception):
    """The server closed its end of the socket, or said Shutdown."""


class Link:
    """The worker's end of the socket: whole frames in, whole frames out."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._splitter = FrameSplitter()

    def send(self, frame: FromWorker) -> None:
        self._socket.sendall(encode(frame))

    def receive(self, timeout: float) -> Iterator[ToWorker]:
        """Frames that are there now, or that arrive within `timeout` seconds. Raises ParentGone at end of file."""
        ready, _, _ = select.select([self._socket], [], [], timeout)
        if ready:
            data = self._socket.recv(1 << 20)
            if not data:
                raise ParentGone
            yield from (decode_to_worker(body) for body in self._splitter.push(data))

    def receive_one(self) -> ToWorker:
        """The first frame, however long it takes."""
        while True:
            for frame in self.receive(60.0):
                return frame


class Worker:
    """One engine and the loop around it."""

    def __init__(self, link: Link, engine: Engine, vocab_size: int) -> None:
        self._link = link
        self._engine = engine
        self._vocab_size = vocab_size
        self._last_sent = 0.0
        self._is_checked = False

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
            self._engine.check_integrity()
            self._is_checked = True
        if time.monotonic() - self._last_sent >= HEARTBEAT_SECONDS:
            self._send((), 0.0)

    def _drain(self) -> None:
        """Take every frame that waits; sleep for one only while there is nothing to do."""
        timeout = 0.0 if self._engine.has_work else HEARTBEAT_SECONDS
        for frame in self._link.receive(timeout):
            self._take(frame)

    def _take(self, frame: ToWorker) -> None:
        if isinstance(frame, Submit):
            self._submit(frame)
        elif isinstance(frame, Cancel):
            self._engine.cancel(frame.request_id)
        elif isinstance(frame, Shutdown):
            raise ParentGone

    def _submit(self, frame: Submit) -> None:
        """A second line behind the server's checks: what it let through must still not end the process."""
        try:
            request = request_of(frame)
            if request.highest_token_id >= self._vocab_size:
                raise ValueError("a token id beyond the vocabulary")
        except Exception:
            traceback.print_exc()
            self._send((refused(frame.request_id),), 0.0)
            return
        self._engine.add(frame.request_id, request, build)

    def _tick(self) -> None:
        self._is_checked = False
        started = time.monotonic()
        outputs = self._engine.tick()
        for output in outputs:
            if output.failure is not None and output.failure.cause is not None:
                traceback.print_exception(output.failure.cause)
        self._send(tuple(_output_frame(o) for o in outputs), time.monotonic() - started)

    def _send(self, outputs: tuple[OutputFrame, ...], seconds: float) -> None:
        self._link.send(Tick(outputs, self._stats(seconds)))
        self._last_sent = time.monotonic()

    def _stats(self, seconds: float) -> Stats:
        engine, scheduler = self._engine, self._engine.scheduler
        live_rows: Counter[str] = Counter()
        for live in scheduler.running:
            live_rows[live.request.strategy.NAME] += len(live.rows)
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            live_rows=dict(live_rows),
            used_pages=engine.used_pages,
            tick_seconds=seconds,
            tick_rows=engine.tick_rows if seconds else 0,
            tick_tokens=engine.tick_tokens if seconds else 0,
            preemptions_total=scheduler.counters.preemptions,
            prefix_queries_total=scheduler.counters.prefix_queries,
            prefix_hits_total=scheduler.counters.prefix_hits,
            computed_tokens_total=engine.computed_tokens,
        )


def _output_frame(output: Output) -> OutputFrame:
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
        )
    return OutputFrame(output.request_id, tuple(_chunk(e) for e in output.emits), prompt or None, finished)


def refused(request_id: int) -> OutputFrame:
    """The only output of a request that never reached the engine."""
    error = Finished(0, 0, 0.0, 0.0, 0.0, 0, "internal", "the request could not be understood")
    return OutputFrame(request_id, finished=error)


def _chunk(emit: Emit) -> Chunk:
    if emit.finish is None:
        return Chunk(emit.choice, emit.token_ids, emit.logprobs, emit.top)
    finish = emit.finish
    return Chunk(
        emit.choice, emit.token_ids, emit.logprobs, emit.top, finish.reason.value, finish.stop_reason, finish.score
    )


def build_engine(start: Start, model: Model) -> tuple[Engine, Loaded]:
    """Size the KV cache, make the engine, decode one canary token. Raises ValueError where the memory is too small."""
    info = model.info
    max_model_len = min(info.max_model_len, start.max_model_len or info.max_model_len)
    page_size = model.attention.page_size
    num_pages = _num_pages(start, model, max_model_len)
    max_model_len = min(max_model_len, (num_pages - 1) * page_size)
    model.attention.allocate(num_pages)
    engine = Engine(
        {MAIN: model},
        {MAIN: PageCache(num_pages, page_size)},
        eos_token_ids=info.eos_token_ids,
        token_bytes=start.token_bytes,
        max_rows=start.max_rows,
        tick_tokens=start.tick_tokens or (CPU_TICK_TOKENS if info.device.type == "cpu" else GPU_TICK_TOKENS),
        max_model_len=max_model_len,
        shares_prefixes=start.prefix_cache,
    )
    _decode_canary(engine)
    loaded = Loaded(
        vocab_size=info.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=info.eos_token_ids,
        num_pages=num_pages,
        page_size=page_size,
        max_rows=start.max_rows,
        device=str(info.device),
        dtype=str(info.dtype).removeprefix("torch."),
        architecture=info.architecture,
    )
    return engine, loaded


def _num_pages(start: Start, model: Model, max_model_len: int) -> int:
    """Pages that the configured memory holds (page 0 included), never more than all rows at full length could use."""
    page_size = model.attention.page_size
    most = 1 + start.max_rows * -(-max_model_len // page_size)
    memory = start.kv_memory_bytes or _default_kv_memory(model.info.device)
    num_pages = min(most, memory // model.attention.bytes_per_page())
    if num_pages < 2:
        raise ValueError("kv_memory is too small for a single page")
    return int(num_pages)


def _default_kv_memory(device: torch.device) -> int:
    """Nine tenths of the free memory of a GPU; on a CPU a quarter of what is available, at most 4 GiB."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.9)
    return min(4 << 30, available_memory() // 4)


def _decode_canary(engine: Engine) -> None:
    """One greedy token end to end: proves that the model runs before the server says it is ready."""
    request = Request((0, 1, 2), logits=LogitsParams(temperature=0), stopping=StoppingParams(max_tokens=2))
    engine.add(0, request, build)
    while engine.has_work:
        for output in engine.tick():
            if output.failure is not None:
                raise RuntimeError(f"the canary request failed: {output.failure.message}") from output.failure.cause
    engine.check_integrity()


def _die_with_parent() -> None:
    """Linux: the kernel kills this process when its parent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve(link: Link) -> None:
    start = link.receive_one()
    if not isinstance(start, Start):
        raise TypeError("the first frame must be Start")
    if start.threads:
        torch.set_num_threads(start.threads)
    during = "load"
    try:
        model = load(
            start.model,
            device=start.device,
            dtype=start.dtype,
            progress=lambda stage, fraction: link.send(Progress(stage, fraction)),
        )
        engine, loaded = build_engine(start, model)
        link.send(loaded)
        during = "tick"
        Worker(link, engine, loaded.vocab_size).run()
    except (ParentGone, BrokenPipeError, ConnectionResetError):
        raise ParentGone from None
    except Exception as error:
        link.send(Crashed(during, f"{type(error).__name__}: {error}"))
        raise


def main() -> None:
    """Entry point of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _die_with_parent()
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    try:
        with torch.inference_mode():
            _serve(link)
    except ParentGone:
        return


if __name__ == "__main__":
    main()

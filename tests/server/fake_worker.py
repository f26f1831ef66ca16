"""A scripted decode worker without torch: `python -m tests.server.fake_worker FD` speaks the frames of the real one.

What it does is said by the plan (plan.json in the model's directory, or Start.model itself as JSON) for its life, and
by the first prompt id for a request.
"""

from __future__ import annotations

import itertools
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec

from decoding.contract.frames import (
    Cancel,
    Chunk,
    Crashed,
    Fault,
    Finished,
    FrameSplitter,
    Loaded,
    Open,
    Output,
    Progress,
    Shutdown,
    Start,
    Stats,
    Submit,
    Tick,
    ToWorker,
    decode_to_worker,
    encode,
)

ANSWER, DIE, HANG, NEVER_FITS, WAIT, GARBAGE, NAN, STALL, SLOW, BURST, SPIN, MASKED = range(1, 13)
SLOW_SECONDS = 0.03


class Plan(msgspec.Struct, frozen=True):
    """What happens in this life. `lives` names a file that counts lives; the first `doomed_lives` die while loading."""

    load_seconds: float = 0.0
    crash_message: str = ""
    fault_message: str = ""
    lives: str = ""
    doomed_lives: int = 0
    stop_reading: bool = False
    max_running: int = 1000
    max_model_len: int = 64
    device: str = "cpu"


class Live(msgspec.Struct):
    submit: Submit
    num_out: int = 0
    next_at: float = 0.0


class FakeWorker:
    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._arrival = select.poll()
        self._arrival.register(link, select.POLLIN)
        self._splitter = FrameSplitter()
        self._waiting: dict[int, Live] = {}
        self._running: dict[int, Live] = {}
        self._computed = 0

    def run(self) -> None:
        plan = self._load()
        for number in itertools.count():
            if not plan.stop_reading:
                self._read(0.002 if self._running else 0.05)
            else:
                time.sleep(0.02)
            if plan.stop_reading and number > 50:
                sys.exit(0)  # it would not see its parent go
            self._admit(plan.max_running)
            self._tick(number)

    def _load(self) -> Plan:
        start = self._next()
        if isinstance(start, Open):  # the plan is in what follows
            start = self._next()
        assert isinstance(start, Start)
        path = Path(start.model) / "plan.json"
        plan = msgspec.json.decode(path.read_bytes() if path.exists() else start.model.encode(), type=Plan)
        self._send(Progress("loading weights", 0.5))
        if plan.fault_message:
            self._send(Fault(plan.fault_message, ("Traceback", "its lines")))
        if plan.crash_message:
            self._send(Crashed("load", plan.crash_message, ("Traceback", "its lines")))
            sys.exit(1)
        if plan.lives and _count_life(Path(plan.lives)) <= plan.doomed_lives:
            os._exit(7)
        time.sleep(plan.load_seconds)
        self._send(
            Loaded(100, plan.max_model_len, (2,), 10, 16, start.max_rows, plan.device, "float32", "FakeForCausalLM")
        )
        return plan

    def _next(self) -> ToWorker:
        data = b""  # two frames may have come at once
        while True:
            for body in self._splitter.push(data):
                return decode_to_worker(body)
            data = self._receive()

    def _receive(self) -> bytes:
        data = self._link.recv(1 << 16)
        if not data:
            sys.exit(0)
        return data

    def _send(self, frame: Progress | Loaded | Tick | Crashed | Fault) -> None:
        try:
            self._link.sendall(encode(frame))
        except OSError:
            sys.exit(0)

    def _read(self, patience: float) -> None:
        while self._arrival.poll(patience * 1000):
            for body in self._splitter.push(self._receive()):
                self._take(decode_to_worker(body))
            patience = 0

    def _take(self, frame: ToWorker) -> None:
        match frame:
            case Submit():
                self._waiting[frame.request_id] = Live(frame)
            case Cancel():
                self._waiting.pop(frame.request_id, None)
                self._running.pop(frame.request_id, None)
            case Shutdown():
                sys.exit(0)

    def _admit(self, max_running: int) -> None:
        for request_id, live in list(self._waiting.items()):
            if live.submit.prompt_ids[0] != WAIT and len(self._running) < max_running:
                self._running[request_id] = self._waiting.pop(request_id)

    def _tick(self, number: int) -> None:
        outputs = tuple(output for live in list(self._running.values()) for output in self._outputs(live))
        rows = {"sampling": len(self._running)} if self._running else {}
        running, waiting = len(self._running), len(self._waiting)
        num_fed = len(outputs) + waiting  # whoever waits, waits for others that run
        stats = Stats(running, waiting, rows, {"main": running}, 0.001, num_fed, 5, 0, 8, 4, self._computed)
        if outputs or number % 10 == 0:
            self._send(Tick(outputs, stats))

    def _outputs(self, live: Live) -> list[Output]:
        kind, request_id = live.submit.prompt_ids[0], live.submit.request_id
        match kind:
            case 2:
                os._exit(3)
            case 3:
                time.sleep(3600)
            case 6:
                self._link.sendall(b"\xff" * 64)
            case 4 | 7 | 12:
                code = {NEVER_FITS: "never_fits", MASKED: "nothing_to_draw"}.get(kind, "nan_logits")
                return [Output(request_id, finished=self._finish(live, code))]
            case 11:
                return []
            case 8:
                return [Output(request_id)]
            case 10:
                return [self._token(live) for _ in range(live.submit.stopping.max_tokens)]
            case _:
                return self._paced(live, SLOW_SECONDS if kind == SLOW else 0.0)
        return []

    def _paced(self, live: Live, seconds: float) -> list[Output]:
        if time.monotonic() < live.next_at:
            return []
        live.next_at = time.monotonic() + seconds
        return [self._token(live)]

    def _token(self, live: Live) -> Output:
        live.num_out += 1
        self._computed += 1
        is_last = live.num_out >= live.submit.stopping.max_tokens
        reason = ("stop" if 50 in live.submit.prompt_ids else "length") if is_last else None
        token = 10 + live.num_out % 80
        choices = range(live.submit.strategy_params.get("n", 1))
        chunks = tuple(Chunk(choice, (token,), finish_reason=reason) for choice in choices)
        return Output(live.submit.request_id, chunks, finished=self._finish(live) if is_last else None)

    def _finish(self, live: Live, code: str | None = None) -> Finished:
        self._running.pop(live.submit.request_id)
        return Finished(3, live.num_out, 0.01, 0.02, 0.03, 0, code, "a message from the worker" if code else None)


def _count_life(path: Path) -> int:
    with path.open("a") as file:
        file.write(".")
    return path.stat().st_size


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    FakeWorker(socket.socket(fileno=int(sys.argv[1]))).run()

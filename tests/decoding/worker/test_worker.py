"""The worker as a process of its own, spoken to in frames over a socket pair, with a tiny Llama in a directory."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar, cast

import pytest
import torch

from decoding.contract.frames import (
    Cancel,
    Chunk,
    Crashed,
    Fault,
    FrameSplitter,
    FromWorker,
    Loaded,
    Open,
    Output,
    Progress,
    Shutdown,
    Start,
    Tick,
    ToWorker,
    decode_from_worker,
    encode,
    submit_frame,
)
from decoding.contract.params import (
    Assisted,
    LogitsParams,
    LogprobsParams,
    PromptLookup,
    Request,
    Sampling,
    StoppingParams,
)
from decoding.engine.cache import PageCache
from decoding.model.loading import wrap
from decoding.worker.link import Link
from decoding.worker.worker import _build
from tests.decoding.drive import run
from tests.decoding.engines import make_engine
from tests.decoding.tiny import tiny

REQUEST = Request(
    (5, 6, 7, 8), Sampling(2), LogitsParams(0.9), StoppingParams(12, ignore_eos=True), LogprobsParams(2, 1), seed=4
)
SECONDS = 60.0
F = TypeVar("F", Tick, Loaded, Fault)


class Peer:
    """The server's side of the socket."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.socket = connection
        self.process = process
        self._splitter = FrameSplitter()
        self._frames: list[FromWorker] = []
        connection.settimeout(SECONDS)

    def send(self, frame: ToWorker) -> None:
        self.socket.sendall(encode(frame))

    def receive(self) -> FromWorker:
        while not self._frames:
            data = self.socket.recv(1 << 16)
            assert data, "the worker closed the socket"
            self._frames += [decode_from_worker(body) for body in self._splitter.push(data)]
        return self._frames.pop(0)

    def until(self, kind: type[F], accept: Callable[[F], bool] = lambda _: True) -> F:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            frame = self.receive()
            if isinstance(frame, kind) and accept(frame):
                return frame
            assert not isinstance(frame, Crashed), frame
        raise AssertionError(f"no {kind.__name__} came")

    def outputs_of(self, request_id: int) -> list[Output]:
        """Everything said about the request until it is over."""
        outputs: list[Output] = []
        while not outputs or outputs[-1].finished is None:
            tick = self.until(Tick)
            outputs += [o for o in tick.outputs if o.request_id == request_id]
        return outputs


@contextmanager
def worker() -> Iterator[Peer]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "decoding.worker.worker", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    try:
        yield Peer(ours, process)
    finally:
        ours.close()
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(model_directory: Path) -> Iterator[Peer]:
    """A worker that has loaded; the tests of this module share it and leave it idle."""
    with worker() as peer:
        peer.send(Start(model=str(model_directory), device="cpu", dtype="float32", max_rows=16, threads=1))
        assert isinstance(peer.receive(), Progress)
        ready = peer.until(Loaded)
        assert (ready.vocab_size, ready.eos_token_ids, ready.architecture) == (97, (2,), "LlamaForCausalLM")
        assert (ready.dtype, ready.dtype_reason) == ("float32", "as told")
        yield peer


def test_garbage_is_collected_once_the_model_is_loaded_but_not_in_every_tick(model_directory: Path) -> None:
    """The process imports without; with cycles of every tick left lying it would grow for as long as it serves."""
    link, threads = cast(Link, SimpleNamespace(send=lambda _: None)), torch.get_num_threads()
    often = gc.get_threshold()
    gc.disable()
    try:
        _build(Start(model=str(model_directory), device="cpu", dtype="float32", threads=1), link)
        assert gc.isenabled()
        assert gc.get_threshold()[0] > 256 * 40, "a tick of 256 rows makes some forty objects for each"
    finally:
        gc.enable()
        gc.set_threshold(*often)
        gc.unfreeze()
        torch.set_num_threads(threads)


def tokens(outputs: list[Output], choice: int) -> list[int]:
    chunks = [c for o in outputs for c in o.chunks if c.choice == choice]
    return [t for c in chunks for t in c.token_ids]


def test_it_answers_what_the_engine_in_process_answers(loaded: Peer) -> None:
    loaded.send(submit_frame(7, REQUEST))
    outputs = loaded.outputs_of(7)
    model = wrap(tiny("llama"))
    model.attention.allocate(50)
    engine = make_engine({"main": model}, {"main": PageCache(50, model.attention.page_size)}, eos_token_ids=(2,))
    (answer,) = run(engine, [REQUEST])
    assert [tokens(outputs, i) for i in range(2)] == [answer.tokens(i) for i in range(2)]
    last: Chunk = next(c for c in outputs[-1].chunks if c.choice == 1)
    assert last.finish_reason == "length"
    assert last.score == pytest.approx(sum(answer.choices[1].logprobs))
    scored = [o.prompt for o in outputs if o.prompt is not None]
    assert len(scored) == 1
    assert answer.prompt is not None
    assert scored[0].logprobs == pytest.approx(answer.prompt.logprobs)
    assert outputs[-1].finished is not None
    assert outputs[-1].finished.error_code is None


def test_one_tick_carries_the_outputs_of_all_requests(loaded: Peer) -> None:
    for request_id in (11, 12, 13):
        loaded.send(submit_frame(request_id, REQUEST))
    tick = loaded.until(Tick, lambda t: len(t.outputs) == 3)
    assert tick.stats.running == 3
    assert tick.stats.tick_rows >= 3
    assert tick.stats.live_rows == {"sampling": 6}
    loaded.until(Tick, lambda t: t.stats.running == 0)


def test_a_cancelled_request_is_heard_of_no_more_and_its_pages_are_back(loaded: Peer) -> None:
    endless = Request((3, 4), stopping=StoppingParams(200, ignore_eos=True))
    loaded.send(submit_frame(21, endless))
    loaded.until(Tick, lambda t: any(o.request_id == 21 and o.chunks for o in t.outputs))
    loaded.send(Cancel(21))
    quiet = loaded.until(Tick, lambda t: t.stats.running == 0)
    assert not quiet.outputs
    assert quiet.stats.used_pages == {"main": 0}


def test_it_beats_while_idle(loaded: Peer) -> None:
    beat = loaded.until(Tick, lambda t: not t.outputs)
    assert beat.stats.tick_rows == 0


def test_a_request_that_can_never_fit_is_refused_by_code(loaded: Peer) -> None:
    loaded.send(submit_frame(31, Request((3, 4), Sampling(17))))
    (output,) = loaded.outputs_of(31)
    assert output.finished is not None
    assert output.finished.error_code == "never_fits"


@pytest.mark.parametrize(
    "request_",
    [
        Request((97,)),
        Request((3,), logits=LogitsParams(logit_bias=((97, 1.0),))),
        Request((3,), logits=LogitsParams(allowed_token_ids=(1, 97))),
        Request((3,), stopping=StoppingParams(stop_token_ids=(97,))),
    ],
)
def test_an_id_beyond_the_vocabulary_fails_its_request_and_nothing_else(loaded: Peer, request_: Request) -> None:
    loaded.send(submit_frame(35, request_))
    assert loaded.until(Fault).message.startswith("ValueError at decoding/worker/worker.py:")
    (output,) = loaded.outputs_of(35)
    assert output.finished is not None
    assert output.finished.error_code == "internal"
    loaded.send(submit_frame(36, REQUEST))
    assert loaded.outputs_of(36)[-1].chunks


def test_signals_meant_for_the_group_do_not_end_it(loaded: Peer) -> None:
    loaded.process.send_signal(signal.SIGTERM)
    loaded.process.send_signal(signal.SIGINT)
    loaded.send(submit_frame(41, REQUEST))
    assert loaded.outputs_of(41)


@pytest.mark.parametrize("farewell", ["shutdown", "close"])
def test_it_exits_with_0_when_told_and_when_the_server_is_gone(model_directory: Path, farewell: str) -> None:
    with worker() as peer:
        peer.send(Start(model=str(model_directory), device="cpu", threads=1))
        peer.until(Loaded)
        peer.send(submit_frame(1, Request((3, 4), stopping=StoppingParams(200, ignore_eos=True))))
        if farewell == "shutdown":
            peer.send(Shutdown())
        else:
            peer.socket.close()
        assert peer.process.wait(SECONDS) == 0


def test_it_opens_the_model_before_it_is_told_the_rest(model_directory: Path) -> None:
    with worker() as peer:
        peer.send(Open(model=str(model_directory), device="cpu", dtype="float32", threads=1))
        first = peer.receive()
        assert isinstance(first, Progress)
        peer.send(Start(model=str(model_directory), device="cpu", dtype="float32", max_rows=16, threads=1))
        while isinstance(frame := peer.receive(), Progress):
            assert frame != first  # it is not opened again
        assert isinstance(frame, Loaded)
        assert frame.max_rows == 16


def test_a_model_that_cannot_be_loaded_is_its_last_word(tmp_path: Path) -> None:
    with worker() as peer:
        peer.send(Start(model=str(tmp_path), device="cpu"))
        frame = peer.receive()
        while isinstance(frame, Progress):
            frame = peer.receive()
        assert isinstance(frame, Crashed)
        assert frame.during == "load"
        assert frame.message
        assert str(tmp_path) not in frame.message
        assert frame.trace[0].startswith("Traceback")
        assert peer.process.wait(SECONDS) == 1


@pytest.fixture(scope="module")
def draft_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("draft")
    tiny("llama", num_hidden_layers=1, max_position_embeddings=128).save_pretrained(path)
    return path


def test_with_a_draft_model_it_speculates_beside_sampling(model_directory: Path, draft_directory: Path) -> None:
    greedy = dataclasses.replace(REQUEST, logits=LogitsParams(0), strategy=Assisted(3, confidence_threshold=0, n=2))
    lookup = dataclasses.replace(REQUEST, strategy=PromptLookup(4, n=2))
    sampled = dataclasses.replace(greedy, logits=LogitsParams(0.9))
    plain = dataclasses.replace(greedy, strategy=Sampling(2))
    requests = [REQUEST, greedy, lookup, sampled, plain]
    with worker() as peer:
        start = Start(str(model_directory), "cpu", "float32", 32, threads=1, beside={"draft": str(draft_directory)})
        peer.send(start)
        stages = []
        while isinstance(frame := peer.receive(), Progress):
            stages.append(frame.stage)
        assert isinstance(frame, Loaded)
        assert any(stage.startswith("draft model: ") for stage in stages)
        assert (frame.num_layers, frame.max_model_len) == (3, 128)
        assert [(each.name, each.architecture) for each in frame.beside] == [("draft", "LlamaForCausalLM")]
        for request_id, request in enumerate(requests):
            peer.send(submit_frame(request_id, request))
        said: dict[int, list[Output]] = {i: [] for i in range(len(requests))}
        while any(not outputs or outputs[-1].finished is None for outputs in said.values()):
            tick = peer.until(Tick)
            for output in tick.outputs:
                said[output.request_id].append(output)
    for one, other in ((greedy, plain), (lookup, REQUEST)):
        pair = [said[requests.index(r)] for r in (one, other)]
        assert [tokens(pair[0], i) for i in range(2)] == [tokens(pair[1], i) for i in range(2)]
    assert len(tokens(said[requests.index(sampled)], 1)) == 12
    finished = [outputs[-1].finished for outputs in said.values()]
    assert all(f is not None and f.error_code is None for f in finished)
    assert tick.stats.drafted_total == sum(f.drafted for f in finished if f) > 0
    assert tick.stats.accepted_total == sum(f.accepted for f in finished if f)
    figures = [c.figures for c in said[1][-1].chunks if c.finish_reason]
    assert all(f is not None and set(f) == {"drafted", "accepted"} for f in figures)


def test_a_draft_model_of_another_vocabulary_is_refused(model_directory: Path, tmp_path: Path) -> None:
    tiny("llama", vocab_size=96).save_pretrained(tmp_path)
    with worker() as peer:
        peer.send(Start(model=str(model_directory), device="cpu", beside={"draft": str(tmp_path)}, threads=1))
        while isinstance(frame := peer.receive(), Progress):
            pass
        assert isinstance(frame, Crashed)
        assert frame.during == "load"
        assert "another vocabulary: 96 token ids, where the model has 97" in frame.message


def test_it_does_not_outlive_a_parent_that_is_killed(model_directory: Path) -> None:
    """The parent here is a shell-less Python that starts a worker, prints its pid, and is killed."""
    script = (
        "import socket, subprocess, sys, time\n"
        "a, b = socket.socketpair()\n"
        "module = 'decoding.worker.worker'\n"
        "p = subprocess.Popen([sys.executable, '-m', module, str(b.fileno())], pass_fds=[b.fileno()])\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and os.path.exists(f"/proc/{pid}"):
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":  # dead; whoever adopted it has yet to reap it
            break
        time.sleep(0.05)
    else:
        assert not os.path.exists(f"/proc/{pid}")

"""What grammars cost: kept states, the time of a mask, compiling while others decode."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from llguidance import LLExecutor, LLTokenizer

from decoding.contract.frames import FrameSplitter, Submit, Tick, decode_from_worker, encode, submit_frame
from decoding.contract.grammars import MAX_ITEMS, compile_grammar, read_tokens
from decoding.contract.params import Grammar, LogitsParams, Request, Sampling, StoppingParams
from decoding.logits import grammar as grammar_masks
from decoding.logits.grammar import SPARE_STATES, Grammars, Latest, States
from decoding.logits.history import History
from decoding.worker.link import Link
from decoding.worker.threads import Threads
from decoding.worker.worker import Worker
from tests.decoding.table_model import TableModel, table_engine

AMBIGUOUS = Grammar("lark", 'start: s\ns: s s | /[a-z ]/ | ""')
EOS = 256


@pytest.fixture(scope="module")
def tokens() -> LLTokenizer:
    return read_tokens([bytes([i]) for i in range(256)], {}, [EOS])


def history(ids: list[int]) -> History:
    return History(np.array([0, *ids]), 1)


def states(tokens: LLTokenizer, latest: Latest) -> States:
    matcher = compile_grammar(Grammar("regex", "[a-z ]*"), tokens)
    return States(matcher, tokens.vocab_size, [EOS], executor=LLExecutor(), latest=latest, name=0)


def test_a_row_keeps_a_handful_of_its_states_and_an_idle_engine_none(tokens: LLTokenizer) -> None:
    latest = Latest()
    row = states(tokens, latest)
    for length in range(300):
        row.masks([history([97] * length)])
        latest.settle()
        assert len(latest) <= 2 + SPARE_STATES
    latest.clear()
    assert len(latest) == 0


def test_a_tick_forgets_nothing_of_what_it_asked_for(tokens: LLTokenizer) -> None:
    latest = Latest()
    row = states(tokens, latest)
    row.masks([history([97 + i % 26, 97 + i // 26]) for i in range(600)])
    latest.settle()
    assert len(latest) >= 600
    latest.settle()  # a tick of prefill only
    assert len(latest) >= 600


def test_an_ambiguous_grammar_is_given_up_while_a_mask_is_cheap() -> None:
    """Each token adds to what the next mask costs: half a second after some fifty."""
    words = [" ".join((a * n, b * n)).encode() for n in range(1, 9) for a in "abcdefgh" for b in "abcdefgh"]
    matcher = compile_grammar(
        AMBIGUOUS, read_tokens([*(bytes([i]) for i in range(256)), *words], {}, [256 + len(words)])
    )
    for _ in range(200):
        matcher.compute_bitmask()
        if matcher.is_error():
            break
        matcher.try_consume_tokens([97])
    assert f"limit {MAX_ITEMS}" in matcher.get_error()


class Peer:
    """The server's end of a worker that runs turn by turn."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._splitter = FrameSplitter()
        engine = table_engine(
            models={"main": TableModel(page_size=16, num_pages=200, vocab=260)},
            eos=(EOS,),
            token_bytes=[bytes([i]) for i in range(256)],
        )
        self.worker = Worker(Link(theirs), engine, 260, Threads(1, lambda _: None))
        self.finished: list[int] = []

    def send(self, frame: Submit) -> None:
        self._socket.sendall(encode(frame))

    def turn(self) -> None:
        self.worker._drain()
        if self.worker._engine.has_work:
            self.worker._tick()
            for body in self._splitter.push(self._socket.recv(1 << 20)):
                frame = decode_from_worker(body)
                if isinstance(frame, Tick):
                    self.finished += [output.request_id for output in frame.outputs if output.finished is not None]


def asked(request_id: int, grammar: Grammar | None = None) -> Submit:
    logits = LogitsParams(0.0, grammar=grammar)
    return submit_frame(request_id, Request((1, 2), Sampling(), logits, stopping=StoppingParams(max_tokens=4)))


def test_others_decode_while_a_grammar_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    may_compile = threading.Event()

    def slowly(*arguments: Any) -> Any:
        may_compile.wait(60)
        return compile_grammar(*arguments)

    monkeypatch.setattr(grammar_masks, "compile_grammar", slowly)
    peer = Peer()
    peer.send(asked(1, Grammar("regex", "[a-z]*")))
    peer.send(asked(2, Grammar("regex", "[0-9]*")))
    peer.send(asked(3))
    while 3 not in peer.finished:
        peer.turn()
    assert peer.finished == [3]
    may_compile.set()
    while not {1, 2} <= set(peer.finished):
        peer.turn()


def test_a_grammar_whose_request_was_cancelled_is_compiled_for_the_next_one() -> None:
    known = Grammars([EOS], [bytes([i]) for i in range(256)])
    grammar = Grammar("regex", "[a-c]+")
    cancelled: Future[Any] = Future()
    cancelled.cancel()
    known._begun[grammar] = cancelled
    begun = known.begin(grammar)
    assert begun is not None
    begun.result(60)
    assert known.mask(grammar) is known.mask(grammar)
    assert known.begin(grammar) is None

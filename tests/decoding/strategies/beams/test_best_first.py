"""Best-first beam search gives what the standard beam of its authors' code gives, and feeds fewer rows."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from decoding.contract.params import BestFirst, LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.engine.engine import Engine
from decoding.strategies import build
from tests.decoding.drive import Answer, run
from tests.decoding.strategies.table_oracle import logprob_error, table_logprobs
from tests.decoding.table_model import table_engine

EOS = (3, 11, 19, 27)
PROMPT = (3, 1, 4, 1, 5)
LogProbs = Callable[[Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class Hypo:
    tokens: tuple[int, ...]
    score: float
    is_finished: bool


@dataclass
class StandardBeam:
    """Beam search as rycolab/bfbs has it: finished hypotheses stay in the beam; it goes on until all are finished."""

    logprobs: LogProbs
    num_beams: int
    max_tokens: int
    length_penalty: float
    num_forwards: int = 0

    def run(self) -> list[Hypo]:
        beam = [Hypo((), 0.0, False)]
        while not all(h.is_finished for h in beam):
            entering = [child for hypo in beam for child in self.expand(hypo)]
            beam = sorted(entering, key=lambda h: -h.score)[: self.num_beams]
        return sorted(beam, key=lambda h: -h.score / len(h.tokens) ** self.length_penalty)

    def expand(self, hypo: Hypo) -> list[Hypo]:
        if hypo.is_finished:
            return [hypo]
        self.num_forwards += 1
        logprobs = self.logprobs(PROMPT + hypo.tokens)
        best = np.lexsort((np.arange(len(logprobs)), -logprobs))[: self.num_beams].tolist()
        return [self.child(hypo, token, float(logprobs[token])) for token in best]

    def child(self, hypo: Hypo, token: int, logprob: float) -> Hypo:
        is_finished = token in EOS or len(hypo.tokens) + 1 == self.max_tokens
        return Hypo((*hypo.tokens, token), hypo.score + logprob, is_finished)


def request(num_beams: int, n: int, length_penalty: float = 0.0, max_tokens: int = 9, **more: object) -> Request:
    plain = Request(PROMPT, BestFirst(n, num_beams, length_penalty), stopping=StoppingParams(max_tokens))
    return dataclasses.replace(plain, **more)  # type: ignore[arg-type]


def answer(asked: Request, engine: Engine | None = None) -> Answer:
    (found,) = run(engine or table_engine(eos=EOS), [asked])
    assert found.failure is None, found.failure
    return found


def figure(found: Answer, name: str) -> int:
    finish = found.choices[0].finish
    assert finish is not None
    return int(dict(finish.figures)[name])


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("num_beams", [1, 2, 4, 7])
def test_it_returns_the_n_best_of_the_standard_beam(num_beams: int, length_penalty: float) -> None:
    for n in {1, (num_beams + 1) // 2, num_beams}:
        standard = StandardBeam(table_logprobs, num_beams, 9, length_penalty)
        expected = standard.run()[:n]
        found = answer(request(num_beams, n, length_penalty))
        assert [tuple(found.tokens(i)) for i in range(n)] == [h.tokens for h in expected]
        for i, hypo in enumerate(expected):
            finish = found.choices[i].finish
            assert finish is not None
            scale = len(hypo.tokens) ** length_penalty
            error = len(hypo.tokens) * logprob_error() / scale
            assert finish.score == pytest.approx(hypo.score / scale, abs=error)
        assert figure(found, "forwards") <= standard.num_forwards


def test_it_feeds_fewer_rows_than_the_standard_beam_and_says_how_many() -> None:
    """Over other prompts than the fixed one, by way of the first token that is allowed."""
    saved = 0
    for seed in range(10):
        prompt = tuple(random.Random(seed).choices(range(40), k=5))
        standard = StandardBeam(lambda ids, p=prompt: table_logprobs((*p, *ids[len(PROMPT) :])), 5, 12, 0.0)
        expected = standard.run()
        found = answer(dataclasses.replace(request(5, 1, max_tokens=12), prompt_ids=prompt))
        assert tuple(found.tokens()) == expected[0].tokens
        forwards, at_most_saved = figure(found, "forwards"), figure(found, "forwards_saved")
        assert forwards <= standard.num_forwards
        assert at_most_saved >= 0
        saved += standard.num_forwards - forwards
    assert saved > 100


@pytest.mark.parametrize("max_rows", [2, 3, 5])
def test_with_fewer_rows_than_waiting_parents_it_opens_rows_again(
    max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(6, 4, max_tokens=12, logprobs=LogprobsParams(2), logits=LogitsParams(frequency_penalty=0.3))
    free = answer(asked)
    monkeypatch.setattr(BestFirst, "max_rows", max_rows)
    engine = table_engine(eos=EOS, max_rows=max_rows, num_pages=40)
    assert answer(asked, engine).said == free.said
    assert engine.computed_tokens > figure(free, "forwards") + len(PROMPT)


def test_no_more_rows_live_than_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BestFirst, "max_rows", 5)
    engine = table_engine(eos=EOS)
    engine.add(0, request(8, 8, max_tokens=20), build)
    most = 0
    while engine.has_work:
        engine.tick()
        most = max([most, *(len(live.rows) for live in engine.scheduler.running)])
    assert most == 5

"""What beam search does beyond the goldens: GNMT's scores, pruning, stopping, streaming, reports and rows."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from decoding.contract.params import Beam, LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.contract.params.stopping import StopSequence
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.engine.output import Output
from decoding.seam import FinishReason
from decoding.strategies import build
from tests.decoding.drive import Answer, run
from tests.decoding.strategies.table_oracle import logprob_error, table_logprobs
from tests.decoding.table_model import TableModel, table_engine

EOS = (3, 11, 19)
PROMPT = (3, 1, 4, 1, 5)
REQUEST = Request(PROMPT, Beam(2, 4), stopping=StoppingParams(10))


def answer(request: Request, engine: Engine | None = None) -> Answer:
    (found,) = run(engine or table_engine(eos=EOS), [request])
    assert found.failure is None, found.failure
    return found


def scores(found: Answer) -> list[float]:
    finishes = [found.choices[i].finish for i in range(len(found.choices))]
    return [f.score for f in finishes if f is not None and f.score is not None]


def ticks(request: Request, engine: Engine) -> list[Output]:
    """The request's output of every tick that said anything."""
    engine.add(0, request, build)
    outputs = []
    while engine.has_work:
        outputs += engine.tick()
    return outputs


VOCAB = 5
SOURCE = (4, 0, 2, 1)


def attention(ids: tuple[int, ...]) -> np.ndarray:
    """The table model's: the scores are the keys' ids. To the prompt's tokens alone."""
    weights = np.exp(np.array(ids, dtype=np.float64))
    paid: np.ndarray = (weights / weights.sum())[: len(SOURCE)]
    return paid


def brute_force(alpha: float, beta: float) -> list[tuple[tuple[int, ...], float]]:
    """Every output of at most two tokens over five (token 3 ends it) and its GNMT score, best first."""
    model = TableModel(vocab=VOCAB)
    outputs: list[tuple[int, ...]] = [(3,), *itertools.product((0, 1, 2, 4), range(VOCAB))]
    ranked = []
    for output in outputs:
        pasts = [SOURCE + output[:t] for t in range(len(output))]
        total = sum(float(table_logprobs(past, model)[v]) for past, v in zip(pasts, output, strict=True))
        covered = np.sum([attention(past) for past in pasts], axis=0)
        penalty = beta * sum(math.log(min(c, 1.0)) for c in covered.tolist())
        ranked.append((output, total / ((5 + len(output)) / 6) ** alpha + penalty))
    return sorted(ranked, key=lambda r: -r[1])


@pytest.mark.parametrize(("alpha", "beta"), [(0.2, 0.0), (0.2, 0.2), (2.0, 0.7), (0.0, 3.0)])
def test_gnmt_scores_equal_those_of_every_output_counted_out(alpha: float, beta: float) -> None:
    expected = brute_force(alpha, beta)
    strategy = Beam(21, 25, alpha, "gnmt", beta, "never")
    engine = table_engine(models={"main": TableModel(vocab=VOCAB)}, eos=(3,))
    found = answer(Request(SOURCE, strategy, stopping=StoppingParams(2)), engine)
    assert [tuple(found.tokens(i)) for i in range(21)] == [output for output, _ in expected]
    error = 2 * logprob_error(vocab=VOCAB)  # of two log-probs; what covers the source is float64
    assert scores(found) == pytest.approx([score for _, score in expected], abs=error)


def test_coverage_changes_what_is_best() -> None:
    assert brute_force(0.2, 0.0)[0][0] != brute_force(0.2, 3.0)[0][0]


def test_a_beam_of_one_is_greedy() -> None:
    greedy = Request(PROMPT, logits=LogitsParams(temperature=0), stopping=StoppingParams(10))
    alone = dataclasses.replace(REQUEST, strategy=Beam(1, 1))
    assert answer(alone).tokens() == answer(greedy).tokens()


def test_pruning_drops_beams_far_below_the_best_finished() -> None:
    def rows(prune: float | None) -> tuple[int, list[int]]:
        engine = table_engine(eos=tuple(range(0, 40, 3)))
        strategy = Beam(1, 8, early_stopping="never", prune=prune)
        found = answer(dataclasses.replace(REQUEST, strategy=strategy, stopping=StoppingParams(30)), engine)
        return engine.computed_tokens, found.tokens()

    assert rows(0.05)[0] < rows(None)[0]
    assert rows(50.0) == rows(None)


def test_pruning_leaves_every_choice_something_to_return() -> None:
    strategy = Beam(4, 4, prune=0.0)
    found = answer(dataclasses.replace(REQUEST, strategy=strategy, stopping=StoppingParams(30)))
    reasons = {c.finish.reason for c in found.choices.values() if c.finish is not None}
    assert reasons <= {FinishReason.STOP, FinishReason.LENGTH}


def test_stop_sequences_and_stop_ids_end_hypotheses() -> None:
    plain = answer(REQUEST, table_engine()).tokens()
    table = [bytes([65 + i]) for i in range(40)]
    word = table[plain[2]] + table[plain[3]]
    stopped = dataclasses.replace(REQUEST, stopping=StoppingParams(10, stop=(word,)), strategy=Beam(1, 4, 0.0))
    found = answer(stopped, table_engine(token_bytes=table))
    assert found.tokens() == plain[:4]
    finish = found.choices[0].finish
    assert finish is not None
    assert (finish.reason, finish.stop_reason) == (FinishReason.STOP, StopSequence(0))
    stopping = StoppingParams(10, stop_token_ids=(plain[2],))
    by_id = answer(dataclasses.replace(REQUEST, stopping=stopping, strategy=Beam(1, 4, 0.0)), table_engine())
    assert by_id.tokens() == plain[:3]


def test_min_tokens_keeps_every_hypothesis_going() -> None:
    ending = tuple(range(0, 40, 2))
    short = answer(dataclasses.replace(REQUEST, strategy=Beam(4, 4, 0.0)), table_engine(eos=ending))
    assert min(len(short.tokens(i)) for i in range(4)) < 6
    asked = dataclasses.replace(REQUEST, strategy=Beam(4, 4, 0.0), stopping=StoppingParams(10, min_tokens=6))
    longer = answer(asked, table_engine(eos=ending))
    assert min(len(longer.tokens(i)) for i in range(4)) > 6


def test_what_is_settled_streams_before_the_end_to_every_choice() -> None:
    asked = dataclasses.replace(REQUEST, strategy=Beam(3, 4), stopping=StoppingParams(60, ignore_eos=True))
    outputs = ticks(asked, table_engine())
    early = [emit for output in outputs[:-1] for emit in output.emits]
    assert len({id(output) for output in outputs[:-1] if output.emits}) > 5
    assert all(emit.finish is None for emit in early)
    prefixes = [tuple(t for e in early if e.choice == choice for t in e.token_ids) for choice in range(3)]
    assert len(prefixes[0]) > 20
    assert prefixes[0] == prefixes[1] == prefixes[2]
    whole = answer(asked, table_engine())
    assert len({tuple(whole.tokens(i)) for i in range(3)}) == 3


@pytest.mark.parametrize("n", [1, 3])
def test_with_kept_hypotheses_only_what_they_all_share_is_settled(n: int) -> None:
    """Many endings, so that finished hypotheses are kept and beaten all the time; drive checks that nothing follows a
    finish, and here the streamed tokens must be a prefix of each answer of a run that gives them at once."""
    for first in range(8):
        asked = Request((first, 7), Beam(n, 5, early_stopping="never"), stopping=StoppingParams(25))
        found = answer(asked, table_engine(eos=tuple(range(0, 40, 5))))
        tokens = [tuple(found.tokens(i)) for i in range(n)]
        assert len(set(tokens)) == n
        finals = scores(found)
        for output, score in zip(tokens, finals, strict=True):
            pasts = [(first, 7, *output[:t]) for t in range(len(output))]
            total = sum(float(table_logprobs(p)[v]) for p, v in zip(pasts, output, strict=True))
            assert score == pytest.approx(total / len(output), abs=logprob_error())


BIAS = tuple((token_id, 0.5) for token_id in range(0, 40, 2))


def test_logprobs_are_those_of_the_path_and_the_prompt() -> None:
    asked = dataclasses.replace(REQUEST, logprobs=LogprobsParams(2, 1), logits=LogitsParams(logit_bias=BIAS))
    found = answer(asked)
    choice = found.choices[0]
    for t, token in enumerate(choice.token_ids):
        raw = table_logprobs((*PROMPT, *choice.token_ids[:t]))
        assert choice.logprobs[t] == pytest.approx(float(raw[token]), abs=logprob_error())
        assert [i for i, _ in choice.top[t]] == np.lexsort((np.arange(40), -raw))[:2].tolist()
    assert found.prompt is not None
    assert len(found.prompt.logprobs) == len(PROMPT)
    processed = answer(dataclasses.replace(asked, logprobs=LogprobsParams(0, mode="processed")))
    assert processed.tokens() == list(choice.token_ids)
    num_tokens = len(choice.token_ids)
    total = pytest.approx(scores(found)[0] * num_tokens, abs=num_tokens * logprob_error())
    assert sum(processed.choices[0].logprobs) == total
    assert processed.choices[0].logprobs != pytest.approx(choice.logprobs, abs=0.01)  # the bias is 0.5


def test_max_tokens_0_gives_empty_choices_and_may_score_the_prompt() -> None:
    asked = dataclasses.replace(REQUEST, stopping=StoppingParams(0), logprobs=LogprobsParams(0, 0))
    found = answer(asked)
    assert [found.tokens(i) for i in range(2)] == [[], []]
    assert found.prompt is not None
    assert answer(dataclasses.replace(REQUEST, stopping=StoppingParams(0))).prompt is None


def test_a_choice_that_nothing_is_left_for_fails_the_request() -> None:
    asked = Request(PROMPT, Beam(2, 4), LogitsParams(allowed_token_ids=(8, 9)), StoppingParams(1))
    found = answer(asked)
    assert sorted(found.tokens(i) for i in range(2)) == [[8], [9]]
    failure = run(table_engine(eos=EOS), [dataclasses.replace(asked, strategy=Beam(3, 4))])[0].failure
    assert failure is not None
    assert failure.code == "nothing_to_draw"


def test_rows_fork_only_where_two_beams_share_a_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    forks: list[object] = []
    fork = PageCache.fork

    def counted(self: PageCache, table: Any) -> Any:
        forks.append(table)
        return fork(self, table)

    monkeypatch.setattr(PageCache, "fork", counted)
    outputs = ticks(dataclasses.replace(REQUEST, trace=True), table_engine(eos=EOS))
    events = [event for output in outputs for event in output.trace]
    assert len(events) == 10
    born: list[Any] = [event.values["born"] for event in events[:-1]]
    assert len(forks) == sum(len(b) - len({e["parent"] for e in b}) for b in born)
    json.dumps([event.values for event in events], allow_nan=False)
    assert all(len(b) == 4 for b in born)


def test_ties_go_to_the_earlier_beam_and_the_lower_id() -> None:
    """The bias lifts two tokens to one score far above the rest."""
    bias = LogitsParams(allowed_token_ids=(6, 9), logit_bias=((6, 1e8), (9, 1e8)))
    found = answer(Request(PROMPT, Beam(2, 2, 0.0), bias, StoppingParams(2)))
    assert [found.tokens(i) for i in range(2)] == [[6, 6], [6, 9]]

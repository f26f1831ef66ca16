"""Beams and groups of beams against searches by the book: stop sequences, minimum lengths, few of many, one token."""

from __future__ import annotations

import random

import pytest

from decoding.contract.params import Beam, GroupBeam, LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.contract.params.stopping import StopSequence
from tests.decoding.drive import Answer, run
from tests.decoding.strategies.beams.search_oracle import Rules, beam_search, group_beam_search
from tests.decoding.strategies.table_oracle import LARGEST, logprob_error
from tests.decoding.table_model import table_engine

VOCAB = 40
BYTES = tuple(bytes([97 + i % 7]) for i in range(VOCAB))


def random_params(rng: random.Random) -> Beam | GroupBeam:
    length_penalty, early_stopping = rng.choice([1.0, 0.0, 2.0, -0.5]), rng.choice([False, True, "never"])
    if rng.random() < 0.5:
        num_beams = rng.randrange(1, 5)
        n = rng.randrange(1, num_beams + 1)
        return Beam(n, num_beams, length_penalty=length_penalty, early_stopping=early_stopping)
    groups, size = rng.choice([(2, 1), (2, 2), (4, 1), (1, 3), (3, 2)])
    n, diversity = rng.randrange(1, groups * size + 1), rng.choice([0.3, 1.0, 4.0])
    return GroupBeam(n, groups * size, groups, diversity, length_penalty, early_stopping)


def random_stopping(rng: random.Random) -> StoppingParams:
    max_tokens = rng.choice([1, 2, 3, 6, 9])
    return StoppingParams(
        max_tokens,
        min_tokens=rng.choice([0, 0, min(2, max_tokens), max_tokens]),
        stop=rng.choice([(), (b"ab", b"cd"), (b"a",), (b"bcd", b"ga", b"f")]),
        stop_token_ids=rng.choice([(), (7,)]),
    )


def check(rules: Rules, params: Beam | GroupBeam, answer: Answer) -> None:
    expected = beam_search(rules, params) if isinstance(params, Beam) else group_beam_search(rules, params)
    if len(expected) < params.n:
        assert answer.failure is not None
        assert answer.failure.code == "nothing_to_draw"
        return
    choices = [answer.choices[i] for i in range(params.n)]
    diversity = params.diversity_penalty * params.num_beams if isinstance(params, GroupBeam) else 0.0
    assert [tuple(c.token_ids) for c in choices] == [output for output, _ in expected]
    for choice, (output, score) in zip(choices, expected, strict=True):
        assert choice.finish is not None
        error = len(output) ** (1 - params.length_penalty) * logprob_error(LARGEST + diversity)
        assert choice.finish.score == pytest.approx(score, abs=error)
        raw = [float(rules.logprobs(output[:t])[token]) for t, token in enumerate(output)]
        assert choice.logprobs == pytest.approx(raw, abs=logprob_error())


def test_140_searches_find_what_the_book_finds() -> None:
    num_by_sequence = 0
    for seed in range(140):
        rng = random.Random(seed)
        eos = tuple(rng.sample(range(VOCAB), rng.choice([1, 1, 2, 4])))
        params, stopping = random_params(rng), random_stopping(rng)
        prompt = tuple(rng.randrange(VOCAB) for _ in range(rng.choice([1, 3, 4, 8])))
        request = Request(prompt, params, LogitsParams(0), stopping, LogprobsParams(1))
        (answer,) = run(table_engine(eos=eos, token_bytes=BYTES), [request])
        check(Rules(prompt, stopping, eos, BYTES), params, answer)
        num_by_sequence += any(
            isinstance(c.finish and c.finish.stop_reason, StopSequence) for c in answer.choices.values()
        )
    assert num_by_sequence > 10

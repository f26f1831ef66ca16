"""Banned phrases never come, and nothing that was said is taken back."""

from __future__ import annotations

from typing import Any

import pytest

from decoding.check.table_model import table_token_bytes
from tests.decoding.drive import Answer, run
from tests.decoding.plugin.world import VOCAB, ask, builder, engine, params

BYTES = table_token_bytes(VOCAB)


def text(answer: Answer) -> bytes:
    return b"".join(BYTES[token] for token in answer.tokens())


def answered(seed: int, phrases: tuple[bytes, ...] = (b"\0",), **options: Any) -> Answer:
    strategy = params("phrase_ban", phrases=tuple(phrase.decode() for phrase in phrases))
    (answer,) = run(engine(), [ask(strategy, num_tokens=30, seed=seed, **options)], builder())
    return answer


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_phrase_that_would_come_does_not(seed: int, temperature: float) -> None:
    free = text(answered(seed, temperature=temperature))
    phrases = (free[4:7], free[9:11])
    banned = answered(seed, phrases, temperature=temperature)
    assert not [phrase for phrase in phrases if phrase in text(banned)]
    assert len(banned.tokens()) == 30
    finish = banned.choices[0].finish
    assert finish is not None
    assert dict(finish.figures)["rewinds"] > 0


def test_the_text_before_the_phrase_is_the_same() -> None:
    free = text(answered(3))
    banned = text(answered(3, (free[8:12],)))
    start = free.index(free[8:12])
    assert banned[:start] == free[:start]
    assert banned[: start + 4] != free[: start + 4]


def test_without_a_phrase_it_is_sampling() -> None:
    assert (
        answered(5).tokens() == run(engine(), [ask(params("sampling"), num_tokens=30, seed=5)], builder())[0].tokens()
    )


def test_where_every_way_leads_to_a_phrase_the_request_fails() -> None:
    answer = answered(0, tuple(set(BYTES)))
    assert answer.failure is not None
    assert answer.failure.code == "nothing_to_draw"

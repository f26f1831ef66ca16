"""The LZ penalty against an encoder that is run on the text with each candidate appended."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.contract.params import LogitsParams
from decoding.logits.lz import shortest_match
from tests.decoding.logits.rows import history, run
from tests.decoding.rounding_error import ulp

ALPHA = 0.25


def longest_match(text: list[int], start: int) -> tuple[int, int]:
    """Length and distance of the longest earlier occurrence of what begins at `start`; the nearest of equal length."""
    found = (0, 0)
    for source in range(start):
        length = 0
        while start + length < len(text) and text[source + length] == text[start + length]:
            length += 1
        if length and length >= found[0]:
            found = (length, start - source)
    return found


def code_length(text: list[int], start: int, shortest: int, vocab: int) -> float:
    """Nats that greedy LZ77 spends on text[start:], knowing what stands before."""
    nats, at = 0.0, start
    while at < len(text):
        length, distance = longest_match(text, at)
        if length >= shortest:
            nats, at = nats + math.log(distance) + math.log(length), at + length
        else:
            nats, at = nats + math.log(vocab), at + 1
    return nats


def expected(ids: list[int], buffer: int, window: int, vocab: int) -> list[float]:
    """alpha * (C_i - log V) of every id, in bits."""
    text = ids[-(window + buffer) :]
    shortest = next(n for n in range(1, 99) if math.log2(window) + math.log2(n) <= n * math.log2(vocab) + 1e-12)
    phrase = len(text)
    for start in range(len(text) - 1, max(len(text) - buffer, 0) - 1, -1):
        if longest_match(text, start)[0] == len(text) - start:
            phrase = start
    before = code_length(text, phrase, shortest, vocab)
    costs = [code_length([*text, i], phrase, shortest, vocab) - before for i in range(vocab)]
    return [ALPHA * (min(cost, math.log(vocab)) - math.log(vocab)) / math.log(2) for cost in costs]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(0, 6),
    st.integers(1, 9),
    st.integers(1, 20),
    st.sampled_from([5, 30]),
)
def test_the_penalty_is_the_code_length_that_an_id_adds(
    ids: list[int], split: int, buffer: int, window: int, vocab: int
) -> None:
    for scope, text in (("prompt+output", ids), ("output", ids[split:])):
        params = LogitsParams(lz_penalty=ALPHA, lz_scope=scope, lz_buffer=buffer, lz_window=window)  # type: ignore[arg-type]
        got = run(torch.zeros(vocab), params, history(ids[:split], ids[split:]))
        error = ulp(ALPHA * math.log2(vocab))  # the penalty is rounded to float32 once
        assert got.tolist() == pytest.approx(expected(text, buffer, window, vocab), abs=error)


def test_the_next_id_of_a_long_loop_loses_almost_all_that_an_id_can() -> None:
    loop = [5, 6, 7, 8] * 136
    got = run(torch.zeros(49152), LogitsParams(lz_penalty=0.15), history(loop[:1], loop[1:]))
    error = ulp(0.15 * math.log2(49152))
    assert float(got[5]) == pytest.approx(-0.15 * (math.log2(49152) - math.log2(33 / 32)), abs=error)
    assert float(got[6]) == pytest.approx(-0.15 * (math.log2(49152) - math.log2(3)), abs=error)
    assert (got[[0, 1, 9, 49151]] == 0).all()


def authors_penalty(output: list[int], token_id: int, buffer: int, vocab: int) -> float:
    """log2 V - log2 d: d of the nearest occurrence among those whose ids before match the output's end longest."""
    found = (-1, 0)
    for at in range(buffer, len(output)):
        if output[at] == token_id:
            length = 0
            while length < buffer and output[at - 1 - length] == output[-1 - length]:
                length += 1
            found = max(found, (length, at - len(output)))
    return math.log2(vocab) - math.log2(-found[1]) if found[0] >= 0 else 0.0


def test_in_a_loop_an_id_loses_what_it_loses_in_the_authors_serving_code() -> None:
    """They leave out what a match's length costs, which is little; nats would be a third less."""
    loop = [5, 6, 7, 8] * 40
    got = run(torch.zeros(49152), LogitsParams(lz_penalty=0.15), history([1, 2], loop))
    for token_id in (1, 2, 5, 6, 7, 8, 9):
        theirs = -0.15 * authors_penalty(loop, token_id, 32, 49152)
        assert float(got[token_id]) == pytest.approx(theirs, rel=0.15)


def test_ids_of_the_prompt_alone_are_left_alone_unless_asked_for() -> None:
    """An answer may quote."""
    seen = history([5, 6, 7, 5, 6], [9])
    whole = LogitsParams(lz_penalty=1, lz_scope="prompt+output")
    for params, moved in ((LogitsParams(lz_penalty=1), [9]), (whole, [5, 6, 7, 9])):
        assert run(torch.zeros(49152), params, seen).nonzero().flatten().tolist() == moved


def test_what_lies_before_window_and_buffer_is_forgotten() -> None:
    ids = [9, *np.arange(10, 30).tolist()]
    params = LogitsParams(lz_penalty=1.0, lz_buffer=5, lz_window=10)
    got = run(torch.zeros(1000), params, history([1], ids))
    assert (got[:15] == 0).all()
    assert (got[15:30] < 0).all()


def test_a_match_must_pay_for_itself() -> None:
    assert shortest_match(512, 49152) == 1
    assert shortest_match(512, 97) == 2
    assert shortest_match(2**20, 16) == 6

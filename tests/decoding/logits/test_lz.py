"""The LZ penalty against an encoder that is run on the text with each candidate appended."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decoding.logits.lz import shortest_match
from decoding.params import LogitsParams
from tests.decoding.logits.rows import history, run

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
    """alpha * (C_i - log V) of every id."""
    text = ids[-(window + buffer) :]
    shortest = next(n for n in range(1, 99) if math.log2(window) + math.log2(n) <= n * math.log2(vocab) + 1e-12)
    phrase = len(text)
    for start in range(len(text) - 1, max(len(text) - buffer, 0) - 1, -1):
        if longest_match(text, start)[0] == len(text) - start:
            phrase = start
    before = code_length(text, phrase, shortest, vocab)
    costs = [code_length([*text, i], phrase, shortest, vocab) - before for i in range(vocab)]
    return [ALPHA * (min(cost, math.log(vocab)) - math.log(vocab)) for cost in costs]


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
    params = LogitsParams(lz_penalty=ALPHA, lz_buffer=buffer, lz_window=window)
    got = run(torch.zeros(vocab), params, history(ids[:split], ids[split:]))
    assert got.tolist() == pytest.approx(expected(ids, buffer, window, vocab), abs=1e-5)


def test_the_next_id_of_a_long_loop_loses_almost_all_that_an_id_can() -> None:
    loop = [5, 6, 7, 8] * 136
    got = run(torch.zeros(49152), LogitsParams(lz_penalty=0.15), history(loop[:1], loop[1:]))
    assert got[5] == pytest.approx(-0.15 * (math.log(49152) - math.log(33 / 32)), abs=1e-5)
    assert got[6] == pytest.approx(-0.15 * (math.log(49152) - math.log(3)), abs=1e-5)
    assert (got[[0, 1, 9, 49151]] == 0).all()


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

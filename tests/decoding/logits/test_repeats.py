"""Looking back: the same as comparing all with all, whatever is repeated, at a cost that does not depend on it."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from decoding.contract.params import LogitsParams, PromptLookup, Request, StoppingParams
from decoding.engine.rows import TokenLog
from decoding.logits import repeats
from decoding.logits.history import History
from decoding.logits.repeats import FAR, Repeats, matched_lengths
from decoding.strategies.parts.drafting import Ngrams
from tests.decoding.drive import run as run_engine
from tests.decoding.logits.rows import history, run
from tests.decoding.table_model import table_engine

VOCAB = 6
texts = st.one_of(
    st.lists(st.integers(0, 1), max_size=60),
    st.lists(st.integers(0, 5), max_size=60),
    st.builds(
        lambda loop, times: loop * times, st.lists(st.integers(0, 2), min_size=1, max_size=4), st.integers(0, 20)
    ),
)


def plain_matched(ids: list[int]) -> list[int]:
    found = []
    for end in range(len(ids) - 1):
        length = 0
        while length <= end and ids[end - length] == ids[-1 - length]:
            length += 1
        found.append(length)
    return found


@settings(max_examples=300, deadline=None)
@given(texts)
@example([3] * 70)
def test_what_matches_the_end_is_what_comparing_finds(ids: list[int]) -> None:
    text, kept = np.array(ids, dtype=np.int64), Repeats()
    assert matched_lengths(text).tolist() == plain_matched(ids)
    for end in range(len(ids) + 1):
        assert kept.at(text[:end]).tolist() == plain_matched(ids[:end])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6))
def test_a_log_that_grows_loses_its_end_and_forks_keeps_it_right(seed: int) -> None:
    """With ids that nobody is to see among them, and positions read again."""
    rng = random.Random(seed)
    logs = [TokenLog()]
    for _ in range(30):
        log = rng.choice(logs)
        if rng.random() < 0.3:
            log.truncate(rng.randint(log.length // 2, log.length))
        if rng.random() < 0.2:
            logs.append(log.fork())
        new = tuple(rng.randrange(rng.choice((1, 2))) for _ in range(rng.choice((1, 2, 9, FAR + 5))))
        log.append(new, is_injected=rng.random() < 0.2)
        for _ in range(rng.randrange(3)):
            for length in range(max(log.length - rng.randrange(6), 0), log.length + 1):
                seen = History(log.history(length), 0, log.repeats)
                assert seen.matched.tolist() == plain_matched(seen.ids.tolist())
        guessed = seen_to(log, log.length - 1).extended([0, 1])
        assert guessed.matched.tolist() == plain_matched(guessed.ids.tolist())


def seen_to(log: TokenLog, length: int) -> History:
    return History(log.history(length), 0, log.repeats)


def plain_banned(ids: list[int], n: int) -> set[int]:
    before = n - 1
    return {ids[at] for at in range(before, len(ids)) if ids[at - before : at] == ids[len(ids) - before :]}


@settings(max_examples=200, deadline=None)
@given(texts, st.integers(1, 40))
@example([3] * 50, 25)
def test_ngrams_are_those_that_comparing_finds(ids: list[int], n: int) -> None:
    got = run(torch.zeros(VOCAB), LogitsParams(no_repeat_ngram_size=n), history(ids))
    assert set(got.isneginf().nonzero().flatten().tolist()) == plain_banned(ids, n)


def plain_bad(ids: list[int], words: list[tuple[int, ...]]) -> set[int]:
    """As Hugging Face, a word longer than the history is not looked for."""
    return {
        word[-1]
        for word in words
        if len(word) == 1 or (len(word) <= len(ids) and tuple(ids[1 - len(word) :]) == word[:-1])
    }


@settings(max_examples=200, deadline=None)
@given(texts, st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6).map(tuple), min_size=1, max_size=20))
def test_bad_words_are_those_that_comparing_finds(ids: list[int], words: list[tuple[int, ...]]) -> None:
    got = run(torch.zeros(VOCAB), LogitsParams(bad_words=tuple(words)), history(ids))
    assert set(got.isneginf().nonzero().flatten().tolist()) == plain_bad(ids, words)


@settings(max_examples=100, deadline=None)
@given(texts, st.integers(0, 20))
def test_counts_are_those_of_the_output(ids: list[int], split: int) -> None:
    params = LogitsParams(frequency_penalty=0.5, presence_penalty=0.25)
    got = run(torch.zeros(VOCAB), params, history(ids[:split], ids[split:]))
    counts = [ids[split:].count(i) for i in range(VOCAB)]
    assert got.tolist() == [-(0.5 * n + 0.25 * (n > 0)) for n in counts]


def plain_phrase(text: np.ndarray, longest: int) -> tuple[int, np.ndarray]:
    last = len(text) - 1
    ends = np.flatnonzero(text[:last] == text[last])
    length = min(len(ends), 1)
    while 0 < length < longest:
        longer = ends[ends >= length]
        longer = longer[text[longer - length] == text[last - length]]
        if not len(longer):
            break
        ends, length = longer, length + 1
    return length, ends


def plain_lz(text: np.ndarray, buffer: int, vocab: int) -> np.ndarray:
    """Where one id is a match already: the amounts of all ids, alpha 1."""
    added = np.full(vocab, math.log(vocab))
    ids, distances = np.unique(text[::-1], return_index=True)
    added[ids] = np.log(distances + 1.0)
    length, ends = plain_phrase(text, buffer)
    if length:
        before = math.log((len(text) - 1 - ends[-1]) * length)
        added[text[ends + 1]] = np.log((len(text) - 1.0 - ends) * (length + 1)) - before
    amounts = 1 / math.log(2) * (np.minimum(added, math.log(vocab)) - math.log(vocab))
    return amounts.astype(np.float32)


@settings(max_examples=200, deadline=None)
@given(texts, st.integers(1, 12), st.integers(1, 40), st.integers(0, 30))
@example([3] * 60, 12, 40, 3)
def test_the_lz_penalty_is_that_of_the_plain_search_to_the_last_bit(
    ids: list[int], buffer: int, window: int, split: int
) -> None:
    vocab = 49152  # so many that one id pays for itself
    for scope, begin in (("prompt+output", 0), ("output", split)):
        params = LogitsParams(lz_penalty=1.0, lz_scope=scope, lz_buffer=buffer, lz_window=window)  # type: ignore[arg-type]
        got = run(torch.zeros(vocab), params, history(ids[:split], ids[split:])).numpy()
        text = np.array(ids[begin:], dtype=np.int64)[-(window + buffer) :]
        expected = plain_lz(text, buffer, vocab) if len(text) else np.zeros(vocab, dtype=np.float32)
        assert got.tolist() == expected.tolist()


class Counted(np.ndarray):
    """Ids that count how many of them are compared, and how many are read one by one."""

    num_compared = 0
    num_read = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [i.view(np.ndarray) if isinstance(i, Counted) else i for i in inputs]
        result = getattr(ufunc, method)(*plain, **options)
        Counted.num_compared += np.size(result) if ufunc in (np.equal, np.less, np.not_equal) else 0
        return result

    def tolist(self) -> list[int]:
        Counted.num_read += self.size
        return list(self.view(np.ndarray).tolist())

    def __iter__(self) -> Iterator[int]:
        for each in self.view(np.ndarray):
            Counted.num_read += 1
            yield each


@pytest.mark.parametrize(
    "options",
    [{"lz_penalty": 0.1, "lz_buffer": 400, "lz_window": 8192}, {"no_repeat_ngram_size": 400}],
)
def test_a_position_costs_one_look_at_the_text_however_much_is_repeated(options: dict[str, Any]) -> None:
    total, positions = 1000, 50
    log = TokenLog()
    log.append((3,) * total, is_injected=False)
    log.repeats.at(log.history(total - positions))
    Counted.num_compared = 0
    for length in range(total - positions, total):
        seen = History(log.history(length).view(Counted), 1, log.repeats)
        run(torch.zeros(VOCAB), LogitsParams(**options), seen)
    assert Counted.num_compared <= positions * total


def test_a_text_is_read_from_its_start_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many positions are read of it, drafts lost, and rows forked off."""
    afresh = []
    monkeypatch.setattr(repeats, "matched_lengths", lambda ids: afresh.append(len(ids)) or matched_lengths(ids))  # type: ignore[func-returns-value]
    logits = LogitsParams(1.0, no_repeat_ngram_size=30, lz_penalty=0.01)
    lookup = PromptLookup(num_tokens=20, n=3)
    stopping = StoppingParams(60, ignore_eos=True)
    request = Request((1, 2, 3) * 100, lookup, logits, stopping)
    (answer,) = run_engine(table_engine(num_pages=1000), [request])
    assert answer.usage is not None
    assert answer.usage.drafted > answer.usage.accepted
    assert afresh == [300, 300]  # for the penalties and for the drafts


def test_drafts_are_looked_up_with_one_look_at_the_text_for_each_new_id() -> None:
    text = Ngrams([3] * 1000, 2**40)
    Counted.num_compared = 0
    for _ in range(50):
        text.extend((3,))
        text._ids = text._ids.view(Counted)
        assert text.propose(4, ()) == (3,)
    assert Counted.num_compared <= 50 * 1050


def test_bad_words_are_looked_for_no_further_than_one_of_them_goes_on() -> None:
    words = tuple((5,) * count for count in range(2, 300))
    Counted.num_read = 0
    seen = History(np.array([5] * 1000 + [5, 4], dtype=np.int64).view(Counted), 1)
    assert run(torch.zeros(VOCAB), LogitsParams(bad_words=words), seen).isfinite().all()
    assert Counted.num_read == 1

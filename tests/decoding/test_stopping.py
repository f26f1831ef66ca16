"""When a row ends, and why."""

from __future__ import annotations

import pytest

from decoding.contract.params import InvalidParam, StoppingParams
from decoding.contract.params.stopping import StopSequence
from decoding.seam import Finish, FinishReason
from decoding.stopping import START, Stopping

TOKEN_BYTES = (b"a", b"b", b"ab", b"\xc3", b"\xa9", b"STOP", b"S", b"TOP")


def outcome(params: StoppingParams, tokens: list[int], eos: tuple[int, ...] = ()) -> tuple[int, Finish | None]:
    """How many tokens were taken, and the finish."""
    stopping, progress = Stopping(params, eos, TOKEN_BYTES), START
    for count, token in enumerate(tokens, start=1):
        progress, finish = stopping.push(progress, token)
        if finish is not None:
            return count, finish
    return len(tokens), None


def test_eos_stops_without_a_stop_reason() -> None:
    assert outcome(StoppingParams(9), [0, 1, 0], eos=(1,)) == (2, Finish(FinishReason.STOP))


def test_ignore_eos_goes_on() -> None:
    assert outcome(StoppingParams(3, ignore_eos=True), [1, 1, 1], eos=(1,)) == (3, Finish(FinishReason.LENGTH))


def test_a_stop_id_names_itself() -> None:
    assert outcome(StoppingParams(9, stop_token_ids=(2,)), [0, 2]) == (2, Finish(FinishReason.STOP, 2))


def test_length_counts_output_tokens() -> None:
    assert outcome(StoppingParams(2), [0, 0, 0]) == (2, Finish(FinishReason.LENGTH))


def test_a_stop_sequence_may_span_tokens_and_utf8_borders() -> None:
    assert outcome(StoppingParams(9, stop=(b"STOP",)), [0, 6, 7]) == (3, Finish(FinishReason.STOP, StopSequence(0)))
    assert outcome(StoppingParams(9, stop=("é".encode(),)), [3, 4]) == (2, Finish(FinishReason.STOP, StopSequence(0)))


def test_the_sequence_that_ends_first_wins() -> None:
    assert outcome(StoppingParams(9, stop=(b"bab", b"ab")), [1, 2]) == (2, Finish(FinishReason.STOP, StopSequence(0)))
    assert outcome(StoppingParams(9, stop=(b"TOP", b"STO")), [5]) == (1, Finish(FinishReason.STOP, StopSequence(1)))


def test_a_sequence_is_looked_for_only_once_min_tokens_are_out() -> None:
    params = StoppingParams(9, min_tokens=3, stop=(b"b",))
    assert outcome(params, [1, 0, 0, 1]) == (4, Finish(FinishReason.STOP, StopSequence(0)))


def test_what_was_passed_before_min_tokens_were_out_is_not_found_later_beside_a_longer_sequence() -> None:
    """The bytes kept for the longer one held the whole of the shorter, which then ended the row a token late."""
    params = StoppingParams(9, min_tokens=2, stop=(b"b", b"STOP"))
    assert outcome(params, [1, 0, 0, 2]) == (4, Finish(FinishReason.STOP, StopSequence(0)))
    assert outcome(StoppingParams(9, min_tokens=2, stop=(b"b", b"bbb")), [1, 0, 0, 1]) == (
        4,
        Finish(FinishReason.STOP, StopSequence(0)),
    )


def test_a_sequence_that_began_before_min_tokens_were_out_counts() -> None:
    params = StoppingParams(9, min_tokens=2, stop=(b"STOP", b"b"))
    assert outcome(params, [6, 7, 0]) == (2, Finish(FinishReason.STOP, StopSequence(0)))


def test_a_stop_sequence_of_one_byte_keeps_no_tail() -> None:
    assert outcome(StoppingParams(9, stop=(b"b",)), [0, 0, 2]) == (3, Finish(FinishReason.STOP, StopSequence(0)))


def test_an_id_beyond_the_table_has_no_bytes() -> None:
    assert outcome(StoppingParams(2, stop=(b"b",)), [99, 1]) == (2, Finish(FinishReason.STOP, StopSequence(0)))


def test_more_min_tokens_than_max_tokens_is_refused() -> None:
    with pytest.raises(InvalidParam, match="min_tokens"):
        StoppingParams(max_tokens=2, min_tokens=3)


SPECIAL = {8: b"<end>", 9: b"<x>"}


def stops_at(tokens: list[int], *stop: bytes, **fields: object) -> int | None:
    """Which token ends the row."""
    stopping, progress = Stopping(StoppingParams(99, stop=stop, **fields), (), TOKEN_BYTES, SPECIAL), START  # type: ignore[arg-type]
    for place, token in enumerate(tokens):
        progress, finish = stopping.push(progress, token)
        if finish is not None:
            return place
    return None


def test_a_stop_is_looked_for_in_the_bytes_that_are_shown() -> None:
    said = [0, 8, 1, 9]
    assert stops_at(said, b"a<end>b") is None
    assert stops_at(said, b"a<end>b", shows_special=True) == 2
    assert stops_at(said, b"a<end>b", shown_ids=(8,)) == 2
    assert stops_at(said, b"ab") == 2
    assert stops_at(said, b"ab", shown_ids=(8,)) is None


def test_a_stop_that_names_a_hidden_token_ends_a_row_there() -> None:
    said = [0, 8, 1, 9]
    assert stops_at(said, b"<end>", named_stops=(0,)) == 1
    assert stops_at(said, b"zzz", b"b<x>", named_stops=(1,)) == 3
    assert stops_at(said, b"<x>", b"ab", named_stops=(0,)) == 2
    assert stops_at(said, b"<end>", named_stops=(0,), min_tokens=3) is None

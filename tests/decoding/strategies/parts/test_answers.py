"""The answer in a text of token bytes."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from decoding.contract.answers import (
    LAST_NUMBER,
    LONGEST_ALIGNED,
    Answer,
    compile_answer,
    cut_at,
    find_answer,
    first_line,
    first_line_of,
    last_place,
    normalised,
)
from decoding.contract.params import InvalidParam

NUMBER = compile_answer(LAST_NUMBER)


def pieces(*texts: str) -> list[bytes]:
    return [text.encode() for text in texts]


def test_the_last_number_is_found_with_all_the_tokens_that_say_it() -> None:
    said = pieces("It costs ", "$1", ",2", "34", ".5", "0 and", " no", " more")
    assert find_answer(NUMBER, said) == Answer("1234.5", 1, 6)


def test_a_full_stop_behind_a_number_is_no_part_of_it() -> None:
    assert find_answer(NUMBER, pieces("7 is wrong; it is", " 42", ".")) == Answer("42", 1, 2)


@pytest.mark.parametrize("said", [[], pieces("no number"), pieces("", "")])
def test_a_text_without_a_match_has_no_answer(said: list[bytes]) -> None:
    assert find_answer(NUMBER, said) is None


def test_characters_cut_by_tokens_count_in_bytes() -> None:
    euro = "€".encode()
    said = [b"5", euro[:1], euro[1:], b" or ", b"(b)"]
    assert find_answer(compile_answer("€"), said) == Answer("€", 1, 3)
    assert find_answer(compile_answer(r"\(([a-e])\)"), said) == Answer("b", 4, 5)


def test_bytes_that_are_no_text_are_passed_over() -> None:
    assert find_answer(NUMBER, [b"\xff\xfe", b"12", b"\xe2\x82"]) == Answer("12", 1, 2)


def test_the_first_group_is_the_answer_where_there_is_one() -> None:
    pattern = compile_answer(r"(?i)answer is (\w+)|so (?:\w+)")
    assert find_answer(pattern, pieces("The answer is", " Paris", ".")) == Answer("paris", 1, 2)
    assert find_answer(pattern, pieces("The answer is Paris, ", "so be", " it")) == Answer("so be", 1, 2)


def test_the_last_match_is_found_far_from_the_end_and_uncut() -> None:
    said = pieces("x" * 5000, "1234567", "y" * 5000)
    assert find_answer(NUMBER, said) == Answer("1234567", 1, 2)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("$1,234.50", "1234.5"),
        ("007", "7"),
        ("-0.00", "0"),
        ("42.0", "42"),
        ("-5", "-5"),
        ("1" * 40, "1" * 40),
        ("1e999999999", "1e999999999"),
        (" The  Cat ", "the cat"),
        ("a,b", "a,b"),
    ],
)
def test_equal_answers_become_equal(said: str, expected: str) -> None:
    assert normalised(said) == expected


def test_the_first_line_is_taken_without_its_blanks() -> None:
    assert first_line(pieces(" ", " Par", "is ", "\nnext")) == Answer("paris", 1, 3)
    assert first_line(pieces(" one", " two")) == Answer("one two", 0, 2)
    assert first_line(pieces("\nlate")) is None
    assert first_line([]) is None
    assert b"".join(first_line_of(pieces("a", "b\nc", "d"))) == b"ab"


@pytest.mark.parametrize(
    ("said", "text", "place"),
    [
        ("18", ["I have", " 18", " apples, 1", "8", "."], (2, 4)),
        ("8", ["8", " of", " 18"], (0, 1)),
        ("8", ["18"], None),
        ("cat", ["a cat", "s cat", "alog"], None),
        ("cat", ["a cat", ", cat", "alog"], (0, 1)),
        ("4.", ["4", ". Then ", "5."], (0, 2)),
        ("$4", ["$", "4", " or 4"], (0, 2)),
        ("x", [], None),
    ],
)
def test_what_was_said_is_found_where_the_text_says_it_last_as_a_word(
    said: str, text: list[str], place: tuple[int, int] | None
) -> None:
    found = last_place(said.encode(), pieces(*text))
    assert (found and (found.start, found.stop)) == place


def test_a_text_is_cut_where_its_stop_sequence_begins() -> None:
    assert cut_at(pieces("a 1", "2 EN", "D5"), b"END") == pieces("a 1", "2 ", "")
    assert find_answer(NUMBER, cut_at(pieces("a 1", "2 EN", "D5"), b"D5")) == Answer("12", 0, 2)


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)", "a" * 5000, r"\d*", "", r"(\pL+){1,40}"])
def test_patterns_that_re2_cannot_run_or_that_match_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(InvalidParam) as refused:
        compile_answer(pattern)
    assert refused.value.param == "cot_decoding.answer_regex"


@pytest.mark.parametrize("pattern", ["(a+)+$|(a|aa)+b", "a(?:.*c)?", r"(?s)a(?:.*[cd].{0,200}e)?", "(.*a){40}c|a"])
def test_no_pattern_holds_the_worker_up(pattern: str) -> None:
    """Each is exponential for a backtracking engine, which RE2 is not, or quadratic for one that walks all matches.

    Here a bisection reads the text at most as often as its length has binary digits, and only its end is walked.
    """
    compiled, said = compile_answer(pattern), [b"ab"] * 16_000
    starts, matches = list[int](), list[object]()

    def search(text: bytes, start: int) -> object:
        starts.append(start)
        return compiled.search(text, start)

    def finditer(text: bytes, start: int) -> Iterator[object]:
        starts.append(start)
        for match in compiled.finditer(text, start):
            matches.append(match)
            yield match

    found = find_answer(SimpleNamespace(search=search, finditer=finditer), said)  # type: ignore[arg-type]
    assert found == find_answer(compiled, said)
    assert len(starts) <= (2 * len(said)).bit_length() + 1
    assert 0 < len(matches) <= LONGEST_ALIGNED + 1

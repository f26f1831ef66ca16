import io

import pytest
from rich.console import Console

from loadtest.compare import FIGURES, Turn
from loadtest.outcome import Completed, Failed
from loadtest.report.table import table_document, table_of
from loadtest.scenario import Closed, Scenario, Shape
from loadtest.statistics import Summary, summarise
from loadtest.table import Column, tabulate
from loadtest.target import Target, dialect
from tests.loadtest.test_compare import Recorder

SCENARIO = Scenario("answers", "", Closed(1), (Shape(prompt_words=8, max_tokens=4),), requests=1, warmup=0)
PREFILL = Scenario("prefill", "", Closed(1), (Shape(prompt_words=8, max_tokens=1),), requests=1, warmup=0)
OUTPUT = FIGURES[0]


def turn(tokens: int, wanted: int | None = None) -> Turn:
    return Turn(summarise([Completed(0.0, (0.5,), 1.0, 8, tokens, wanted or tokens)], 0.0), None)


def failed() -> Turn:
    done = Completed(0.0, (0.5,), 1.0, 8, 4, 4)
    return Turn(summarise([done, Failed(0.0, 1.0, "503", "")], 0.0), None)


def printed(columns: list[Column], names: list[str], against: str) -> list[list[str]]:
    """The table's rows of cells."""
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of(columns, names, against))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line for line in output.splitlines() if "│" in line]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


async def test_all_take_turns_in_each_round_with_the_rounds_prompts() -> None:
    recorder = Recorder()

    async def play(name: str, scenario: Scenario, seed: int) -> Summary:
        return await recorder.play(name, scenario, seed)

    names = ("A", "B", "C")
    column = await tabulate(SCENARIO, {name: recorder.contender(name) for name in names}, play, seeds=(1, 2))
    once = [f"{what} {name}" for name in names for what in ("wake", "play", "sleep")]
    assert recorder.log == once * 2
    assert recorder.seeds == [1, 1, 1, 2, 2, 2]
    assert {name: len(turns) for name, turns in column.turns.items()} == dict.fromkeys(names, 2)


def test_ratios_are_taken_within_a_round() -> None:
    column = Column(SCENARIO, {"a": (turn(30), turn(60), turn(10)), "b": (turn(10), turn(30), turn(40))})
    assert column.median("a", OUTPUT) == 30
    assert column.ratio("a", "b") == 2.0  # of 3, 2 and 0.25
    assert column.ratio("b", "a") == pytest.approx(0.5)


def test_who_did_not_play_has_neither_rate_nor_ratio() -> None:
    column = Column(SCENARIO, {"a": (turn(30),)})
    assert (column.median("b", OUTPUT), column.ratio("b", "a"), column.ratio("a", "b")) == (None, None, None)


def test_the_table_shows_rates_and_ratios() -> None:
    columns = [
        Column(SCENARIO, {"a": (turn(30), turn(40)), "b": (turn(20), turn(20))}),
        Column(PREFILL, {"a": (turn(1), turn(1))}),
    ]
    assert printed(columns, ["a", "b"], "b") == [["a", "35.0 (1.75)", "1.00 (–)"], ["b", "20.0 (1.00)", "–"]]


def test_errors_and_short_answers_are_told_below() -> None:
    columns = [Column(SCENARIO, {"a": (failed(), failed()), "b": (turn(2, wanted=4),)})]
    rows = printed(columns, ["a", "b"], "a")
    assert rows[2:] == [["faults of a", "2 errors"], ["faults of b", "1 short"]]


def test_the_document_holds_every_turn_and_no_key() -> None:
    target = Target("http://h", dialect("vllm"), api_key="sesame")
    document = table_document([Column(SCENARIO, {"a": (turn(30), turn(40))})], {"a": target})
    (column,) = document["columns"]
    assert [taken["summary"]["completion_tokens"] for taken in column["turns"]["a"]] == [30, 40]
    assert column["medians"]["a"]["output throughput"] == 35
    assert document["contenders"]["a"]["dialect"] == "vllm"
    assert "sesame" not in str(document)

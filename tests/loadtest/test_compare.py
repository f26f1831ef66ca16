from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loadtest.compare import FIGURES, Comparison, Spread, compare, ratio, spread
from loadtest.outcome import Completed
from loadtest.scenario import Closed, Scenario, Shape
from loadtest.statistics import Summary, summarise

SCENARIO = Scenario("test", "", Closed(1), (Shape(prompt_words=8, max_tokens=4),), requests=1, warmup=0)
THROUGHPUT = next(figure for figure in FIGURES if figure.name == "output throughput")
PER_TOKEN = next(figure for figure in FIGURES if figure.name.startswith("time per output token"))
TO_READY = next(figure for figure in FIGURES if figure.name == "time to ready")


class Recorder:
    """Writes down who was woken, played and put to sleep."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.seeds: list[int] = []

    def contender(self, label: str, seconds_to_ready: float | None = None) -> "RecordedContender":
        return RecordedContender(self.log, label, seconds_to_ready)

    async def play(self, label: str, _: Scenario, seed: int) -> Summary:
        """A makes 30 tokens in a second; B 10 in its first turn, then 15, then 20."""
        self.log.append(f"play {label}")
        self.seeds.append(seed)
        tokens = 30 if label == "A" else 5 + 5 * self.log.count("play B")
        return summarise([Completed(0.0, (0.5,), 1.0, 8, tokens, tokens)], 0.0)


class RecordedContender:
    def __init__(self, log: list[str], label: str, seconds_to_ready: float | None) -> None:
        self._log = log
        self._label = label
        self._seconds_to_ready = seconds_to_ready

    async def open(self) -> None:
        raise AssertionError("opened by someone else")

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float | None]:
        self._log.append(f"wake {self._label}")
        yield self._seconds_to_ready
        self._log.append(f"sleep {self._label}")

    async def close(self) -> None:
        raise AssertionError("closed by someone else")


async def compared(recorder: Recorder, ready: float | None = None) -> Comparison:
    a, b = recorder.contender("A", ready), recorder.contender("B", ready)
    return await compare(SCENARIO, a, b, recorder.play, seeds=(1, 2, 3))


async def test_the_sides_take_turns_and_only_one_is_awake() -> None:
    recorder = Recorder()
    await compared(recorder)
    turn = ["wake A", "play A", "sleep A", "wake B", "play B", "sleep B"]
    assert recorder.log == turn * 3


async def test_a_pair_shares_its_prompts_and_the_next_has_others() -> None:
    recorder = Recorder()
    await compared(recorder)
    assert recorder.seeds == [1, 1, 2, 2, 3, 3]


async def test_ratios_are_taken_pair_by_pair() -> None:
    comparison = await compared(Recorder())
    assert [ratio(THROUGHPUT, pair.a, pair.b) for pair in comparison.pairs] == [3.0, 2.0, 1.5]
    assert spread(THROUGHPUT, comparison.pairs) == Spread(median=2.0, low=1.5, high=3.0)


async def test_time_per_token_divides_by_tokens_of_usage() -> None:
    comparison = await compared(Recorder())
    assert PER_TOKEN.read(comparison.pairs[0].a) == pytest.approx(500 / 29)


async def test_a_figure_that_no_turn_has_has_no_ratio() -> None:
    assert spread(TO_READY, (await compared(Recorder())).pairs) is None
    assert spread(TO_READY, (await compared(Recorder(), ready=2.0)).pairs) == Spread(1.0, 1.0, 1.0)

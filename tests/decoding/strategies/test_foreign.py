"""What a plugin's strategy does wrong fails its own request, and says what it was."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import pytest

from decoding.contract.params import LogitsParams, LogprobsParams, Request, Sampling, StoppingParams
from decoding.contract.params.plugin import PluginStep, PluginStrategy
from decoding.engine.isolation import BROKEN_AFTER
from decoding.seam import Emit, Feed, Finish, FinishReason, Move, Observation, Open, RowId, TraceEvent, Want
from decoding.strategies import Builder
from tests.decoding.drive import Answer, run
from tests.decoding.table_model import table_engine

VOCAB = 40
OVER = Finish(FinishReason.STOP)
Script = Callable[[], Generator[Move, Observation]]


@dataclass(frozen=True)
class Scripted(PluginStrategy):
    NAME = "scripted"

    script: Any = None

    def decode(self, request: Request, stopping: Any, tools: Any) -> Any:
        return self.script()


def opened() -> Move:
    return Move((Feed(Open(), (1, 2), want=Want(top_k=1)),))


def ended() -> Generator[Move, Observation]:
    yield opened()
    yield Move(emit=(Emit(0, (7,), finish=OVER),))


def then(move: Callable[[Observation], Any]) -> Script:
    def script() -> Generator[Any, Observation]:
        seen = yield opened()
        yield move(seen)

    return script


def raising() -> Generator[Move, Observation]:
    raise KeyError("no reason")
    yield


def ask(script: Script, top: int | None = None) -> Request:
    return Request((1, 2), Scripted(script), logprobs=LogprobsParams(top))


def answer_to(script: Script, top: int | None = None) -> Answer:
    beside = Request((3, 4), Sampling(), stopping=StoppingParams(5))
    answer, other = run(table_engine(), [ask(script, top), beside], Builder(vocab_size=VOCAB))
    assert len(other.tokens()) == 5
    return answer


WRONG: dict[str, tuple[Script, str]] = {
    "no Move": (then(lambda seen: None), "answers with a Move"),
    "an exception": (raising, "no reason"),
    "a row that is gone": (then(lambda seen: Move((Feed(RowId(999), (1,)),))), "is gone"),
    "a row held that is gone": (then(lambda seen: Move((Feed(seen.rows[0].row, (1,)),), (RowId(999),))), "is gone"),
    "a token that there is not": (then(lambda seen: Move((Feed(seen.rows[0].row, (VOCAB,)),))), f"names token {VOCAB}"),
    "too many rows": (then(lambda seen: Move((Feed(seen.rows[0].row, (1,)),) * 2)), "its max_rows are 1"),
    "an answer of no token": (then(lambda seen: Move(emit=(Emit(0, (-1,), finish=OVER),))), "token -1"),
    "another choice": (then(lambda seen: Move(emit=(Emit(1, (1,), finish=OVER),))), "choice 1"),
    "no finish": (then(lambda seen: Move(emit=(Emit(0, (1,)),))), "without its Finish"),
    "log-probs unasked": (then(lambda seen: Move(emit=(Emit(0, (1,), (-1.0,), ((),), finish=OVER),))), "nobody asked"),
    "a trace that is no JSON": (
        then(lambda seen: Move(emit=(Emit(0, (1,), finish=OVER),), trace=(TraceEvent(0, "x", {"y": float("nan")}),))),
        "only finite numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_fails_the_request_alone(what: str) -> None:
    script, reason = WRONG[what]
    failure = answer_to(script).failure
    assert failure is not None
    assert (failure.code, reason in str(failure.cause)) == ("internal", True), failure.cause


def test_a_generator_that_ends_well_is_an_answer() -> None:
    answer = answer_to(ended)
    assert (answer.failure, answer.tokens()) == (None, [7])


def test_missing_log_probs_are_noticed() -> None:
    failure = answer_to(ended, top=1).failure
    assert failure is not None
    assert "without log-probs" in str(failure.cause)


class Failing:
    @staticmethod
    def apply(scores: Any, steps: Any, context: Any) -> Any:
        raise ValueError("on purpose")


@dataclass(frozen=True, slots=True)
class FailingStep(PluginStep):
    NAME = "failing"
    KIND = "mask"
    PURPOSE = "To fail."

    def step(self, eos_token_ids: Any, token_bytes: Any) -> Any:
        return Failing()


def test_steps_that_raise_again_and_again_end_nobody_else() -> None:
    """The model does not count as broken for it, however many fail one after the other."""
    failing = Request((1, 2), Sampling(), LogitsParams(plugin_steps=(FailingStep(),)), StoppingParams(3))
    whole = Request((3, 4), Sampling(), stopping=StoppingParams(3))
    answers = run(table_engine(), [failing] * (3 * BROKEN_AFTER) + [whole], Builder(vocab_size=VOCAB))
    assert [answer.failure is not None for answer in answers] == [True] * (3 * BROKEN_AFTER) + [False]
    alone = run(table_engine(), [failing] * (3 * BROKEN_AFTER), Builder(vocab_size=VOCAB))
    assert all(answer.failure is not None for answer in alone)

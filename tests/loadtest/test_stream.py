import json
from typing import Any

import pytest

from loadtest.outcome import Completed, Failed, Outcome
from loadtest.stream import Answer
from tests.loadtest.fake_server import event, finish, text


def read(*pieces: bytes, wanted: int = 4) -> Outcome:
    """The outcome of pieces that come at 1.0, 2.0, … of a request sent at 0.5."""
    answer = Answer(started=0.5, wanted_tokens=wanted)
    for now, piece in enumerate(pieces, 1):
        answer.feed(piece, float(now))
    return answer.outcome(ended=float(len(pieces)))


def chat(**delta: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def test_tokens_are_counted_from_usage_not_from_chunks() -> None:
    outcome = read(text("three tokens here"), text("!"), finish(9, 4))
    assert isinstance(outcome, Completed)
    assert (outcome.prompt_tokens, outcome.completion_tokens, len(outcome.arrivals)) == (9, 4, 2)


def test_latencies_come_from_the_times_of_text() -> None:
    outcome = read(text("a"), text("b"), text("c"), finish(1, 3))
    assert isinstance(outcome, Completed)
    assert outcome.time_to_first_token == 0.5
    assert outcome.gaps == (1.0, 1.0)
    assert outcome.time_per_output_token == 1.5  # three seconds from the first text to the end, two tokens
    assert outcome.end_to_end == 3.5


def test_a_chat_stream_begins_with_its_first_content_not_with_its_role() -> None:
    outcome = read(chat(role="assistant", content=""), chat(content="hi"), finish(1, 1))
    assert isinstance(outcome, Completed)
    assert outcome.arrivals == (2.0,)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_events_may_be_cut_anywhere_and_end_lines_either_way(size: int, line_end: bytes) -> None:
    body = (b": ping\n\n" + text("a") + text("b") + finish(5, 2)).replace(b"\n", line_end)
    outcome = read(*(body[i : i + size] for i in range(0, len(body), size)))
    assert isinstance(outcome, Completed)
    assert (len(outcome.arrivals), outcome.prompt_tokens, outcome.completion_tokens) == (2, 5, 2)


def test_usage_may_come_with_the_last_chunk_and_without_done() -> None:
    last = {"choices": [{"text": "", "finish_reason": "length"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}
    outcome = read(text("a"), event(last))
    assert isinstance(outcome, Completed)
    assert outcome.completion_tokens == 1


def test_with_continuous_usage_the_last_count_is_the_true_one() -> None:
    growing = [
        event({"choices": [{"text": "a"}], "usage": {"prompt_tokens": 3, "completion_tokens": n}}) for n in (1, 2)
    ]
    outcome = read(*growing, finish(3, 2))
    assert isinstance(outcome, Completed)
    assert outcome.completion_tokens == 2


def test_a_lone_token_without_text_arrives_when_the_answer_ends() -> None:
    outcome = read(finish(3, 1))
    assert isinstance(outcome, Completed)
    assert outcome.arrivals == (1.0,)
    assert outcome.time_per_output_token is None


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([text("a")], "truncated"),
        ([text("a"), event({"choices": [{"text": "", "finish_reason": "stop"}]}), event("[DONE]")], "no_usage"),
        ([text("a"), event({"error": {"message": "worker died"}})], "stream_error"),
        ([text("a"), event({"error": "worker died"}), finish(1, 1)], "stream_error"),
        ([event("{broken")], "protocol"),
        ([b"data: " + json.dumps({"choices": 3}).encode() + b"\n\n"], "protocol"),
    ],
)
def test_an_answer_that_is_not_whole_has_failed(pieces: list[bytes], kind: str) -> None:
    outcome = read(*pieces)
    assert isinstance(outcome, Failed)
    assert outcome.kind == kind

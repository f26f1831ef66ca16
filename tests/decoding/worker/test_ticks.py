"""A tick that says too much for one message: nothing is lost, nothing said twice."""

from __future__ import annotations

import msgspec
import pytest

from decoding.contract.frames import Chunk, Finished, Output, PromptScores, Stats, encode
from decoding.contract.params.stopping import StopSequence
from decoding.worker.ticks import ticks_within

STATS = msgspec.convert([1, 0, {}, {}, 0.5, 3, 9, *[0] * 6], Stats)
DONE = Finished(0, 0, 0.0, 0.0, 0.0, 0)


def output(request_id: int, num_tokens: int) -> Output:
    ids = tuple(range(num_tokens))
    top = tuple(((i, -0.5), (i + 1, -1.5)) for i in ids)
    chunk = Chunk(0, ids, tuple(-float(i) for i in ids), top, "stop", StopSequence(1), -3.0, {"a": 1})
    return Output(request_id, (chunk,), PromptScores((None, -1.0), None), DONE)


def said(outputs: list[Output]) -> Output:
    """What one request heard, put together again."""
    chunks = [chunk for each in outputs for chunk in each.chunks]
    last = chunks[-1]
    assert all(chunk.finish_reason is None and chunk.score is None for chunk in chunks[:-1])
    whole = msgspec.structs.replace(
        last,
        token_ids=sum((chunk.token_ids for chunk in chunks), ()),
        logprobs=sum((chunk.logprobs or () for chunk in chunks), ()),
        top=sum((chunk.top or () for chunk in chunks), ()),
    )
    assert [each.finished is not None for each in outputs] == [False] * (len(outputs) - 1) + [True]
    assert [each.prompt is not None for each in outputs] == [True] + [False] * (len(outputs) - 1)
    return msgspec.structs.replace(outputs[-1], chunks=(whole,), prompt=outputs[0].prompt)


@pytest.mark.parametrize("most", [100, 700, 5000, 1 << 20])
def test_everything_is_said_once_and_in_order(most: int) -> None:
    outputs = (output(1, 200), output(2, 1), output(3, 77))
    ticks = list(ticks_within(most, outputs, STATS))
    for whole in outputs:
        heard = [each for tick in ticks for each in tick.outputs if each.request_id == whole.request_id]
        assert said(heard) == whole
    assert [tick.stats.tick_rows for tick in ticks] == [0] * (len(ticks) - 1) + [3]
    assert all(len(encode(tick)) <= max(most, 700) for tick in ticks)


def test_a_tick_that_says_nothing_is_one_message() -> None:
    assert len(list(ticks_within(10, (), STATS))) == 1

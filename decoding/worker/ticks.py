"""What a tick has to say, in as many messages as it takes: searches that hold everything back say megabytes at once."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from decoding.contract.frames import Chunk, Output, Stats, Tick, encode

Outputs = tuple[Output, ...]


def ticks_within(most: int, outputs: Outputs, stats: Stats) -> Iterator[Tick]:
    """Messages of about `most` bytes or less; the figures of the tick come with the last one alone."""
    tick = Tick(outputs, stats)
    if outputs and len(encode(tick)) > most:
        first, second = _halves(outputs)
        if first:
            before = msgspec.structs.replace(stats, tick_seconds=0.0, tick_rows=0, tick_tokens=0)
            yield from ticks_within(most, first, before)
            yield from ticks_within(most, second, stats)
            return
    yield tick


def _halves(outputs: Outputs) -> tuple[Outputs, Outputs]:
    """Nothing in the first half where it cannot be divided."""
    if len(outputs) > 1:
        return outputs[: len(outputs) // 2], outputs[len(outputs) // 2 :]
    (output,) = outputs
    chunks = output.chunks if len(output.chunks) > 1 else tuple(_parts(output.chunks))
    if len(chunks) < 2:
        return (), outputs
    middle = len(chunks) // 2
    first = Output(output.request_id, chunks[:middle], output.prompt)
    return (first,), (msgspec.structs.replace(output, chunks=chunks[middle:], prompt=None),)


def _parts(chunks: tuple[Chunk, ...]) -> Iterator[Chunk]:
    """A chunk of many tokens as two; what it says of its end stays with the second."""
    for chunk in chunks:
        middle = len(chunk.token_ids) // 2
        if middle:
            logprobs, top = chunk.logprobs, chunk.top
            yield Chunk(chunk.choice, chunk.token_ids[:middle], logprobs and logprobs[:middle], top and top[:middle])
            chunk = msgspec.structs.replace(  # noqa: PLW2901
                chunk,
                token_ids=chunk.token_ids[middle:],
                logprobs=logprobs and logprobs[middle:],
                top=top and top[middle:],
            )
        yield chunk

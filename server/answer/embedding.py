"""Answers of /v1/embeddings: the tickets' vectors in, OpenAI's list out."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from contextlib import aclosing

from server.answer.outputs import outputs
from server.queue.ticket import Ticket
from server.translate.plan import Plan
from server.wire.answers import Decoding, Embedding, EmbeddingList, EmbeddingUsage


async def gathered(tickets: Sequence[Ticket]) -> list[bytes]:
    """The vector of each ticket, little-endian float32. Raises the ApiError that ended any of them."""
    vectors = [b""] * len(tickets)
    async with aclosing(outputs(tickets)) as numbered:
        async for number, output in numbered:
            vectors[number] = output.vector or vectors[number]
    return vectors


def embedding_list(plan: Plan, vectors: Sequence[bytes], *, is_base64: bool) -> EmbeddingList:
    data = [
        Embedding(index, base64.b64encode(vector).decode() if is_base64 else _floats(vector))
        for index, vector in enumerate(vectors)
    ]
    usage = EmbeddingUsage(plan.num_prompt_tokens, plan.num_prompt_tokens)
    return EmbeddingList(data, plan.model, usage, Decoding(plan.strategy, plan.effective))


def _floats(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)

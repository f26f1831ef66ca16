"""What the largest tick takes of a GPU's memory beside the KV caches, found out by running one.

Prompts of as many tokens as a tick feeds, in as many rows as there may be, each sampled from and its best tokens read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from decoding.contract.params import LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.engine.engine import Engine
from decoding.model.graphs import GRAPH_BYTES
from decoding.strategies import build

LEAST_BYTES = 3 << 29
"""Left free whatever was measured: longer rows take more in attention, and other reads than these are dearer."""


def requests(
    max_rows: int, tick_tokens: int, max_length: int, vocab_size: int, max_source_length: int = 0
) -> list[Request]:
    """One for each row; no two begin alike, so that none waits for another's pages."""
    length = max(1, min(tick_tokens // max_rows, max_length - 1))
    return [
        Request(
            tuple((row * length + i) % vocab_size for i in range(length)),
            logits=LogitsParams(temperature=1.0, top_k=50, top_p=0.9),
            stopping=StoppingParams(max_tokens=1, ignore_eos=True),
            logprobs=LogprobsParams(output=20),
            source_ids=(0,) * min(length, max_source_length),
        )
        for row in range(max_rows)
    ]


def run(engine: Engine, asked: list[Request]) -> None:
    """Raises RuntimeError where a request fails, for want of memory too."""
    for request_id, request in enumerate(asked):
        engine.add(request_id, request, build)
    while engine.has_work:
        for output in engine.tick():
            if output.failure is not None:
                raise RuntimeError(f"the largest tick failed: {output.failure.message}") from output.failure.cause


def peak_bytes(of: Callable[[], None], device: torch.device) -> int:
    """The most that it held at once of the GPU's memory, beside what was held before."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    of()
    return torch.cuda.max_memory_allocated(device) - before


def bytes_to_leave(peak: int, num_recordings: int) -> int:
    """For ticks and for their recordings, which have a pool of their own."""
    return max(LEAST_BYTES, peak + peak // 8 + num_recordings * GRAPH_BYTES)

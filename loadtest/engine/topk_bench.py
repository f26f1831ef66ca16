"""`python -m loadtest.engine.topk_bench`: what log-softmax and top-k in one kernel gain over torch's two steps.

Both take turns in this process, on random rows and in the ticks of a real engine (the embedded model on the CPU): four
requests of beam 4, and sixteen streams that report log-probs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from unittest.mock import patch

import torch

from decoding.contract.params import MAIN, Beam, LogitsParams, LogprobsParams, Request, StoppingParams
from decoding.engine import reading
from decoding.engine.cache import PageCache
from decoding.engine.engine import Engine
from decoding.engine.limits import Limits
from decoding.engine.placed import Placed
from decoding.engine.vocabulary import Vocabulary
from decoding.gguf.embedded import ensure_directory
from decoding.model.loading import load
from decoding.strategies import build
from decoding.topk.scores import RowScores, log_softmax_topk

VOCAB = 49152
PROMPT, NEW = 32, 96
NUM_PAGES = 1024
BEAMS, LOGPROBS = "4 requests of beam 4", "16 streams, logprobs 5"

Form = Callable[[torch.Tensor, int], RowScores]


def in_steps(z: torch.Tensor, k: int) -> RowScores:
    """log_softmax written out, then topk, then a stable sort of rows with equals among their best."""
    scores = z.log_softmax(dim=-1)
    best, ids = scores.topk(k + 1, dim=-1)
    tied = (best[:, 1:] == best[:, :-1]).any(dim=-1).nonzero().flatten().tolist()
    if tied:
        order = scores[tied].sort(dim=-1, descending=True, stable=True)
        best[tied], ids[tied] = order.values[:, : k + 1], order.indices[:, : k + 1]
    peak = z.gather(1, ids[:, :1])[:, 0]
    return RowScores(z, peak, -best[:, 0], best[:, :k], ids[:, :k])


FORMS: tuple[Form, Form] = (in_steps, log_softmax_topk)


def seconds_of_rows(rows: int, k: int, repeats: int) -> tuple[list[float], list[float]]:
    """Of each form, in turns."""
    taken: tuple[list[float], list[float]] = ([], [])
    inputs = [torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(s)) * 4 for s in range(4)]
    for turn in range(repeats):
        for form, seconds in zip(FORMS, taken, strict=True):
            before = time.perf_counter()
            form(inputs[turn % 4], k)
            seconds.append(time.perf_counter() - before)
    return taken


def requests(name: str) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(100, 20000, (4 if name == BEAMS else 16, PROMPT), generator=generator).tolist()
    stopping = StoppingParams(NEW, ignore_eos=True)
    if name == BEAMS:
        return [Request(tuple(p), Beam(4, 4), stopping=stopping) for p in prompts]
    greedy, logprobs = LogitsParams(temperature=0), LogprobsParams(output=5)
    return [Request(tuple(p), logits=greedy, stopping=stopping, logprobs=logprobs) for p in prompts]


def seconds_of_ticks(engine: Engine, asked: Sequence[Request]) -> tuple[list[float], list[float]]:
    """Of the ticks that decode sixteen rows; each form gets every other tick."""
    taken: tuple[list[float], list[float]] = ([], [])
    for at, request in enumerate(asked):
        engine.add(at, request, build)
    turn = 0
    while engine.has_work:
        with patch.object(reading, "log_softmax_topk", FORMS[turn % 2]):
            before = time.perf_counter()
            engine.tick()
            seconds = time.perf_counter() - before
        if engine.tick_rows == engine.tick_tokens == 16:
            taken[turn % 2].append(seconds)
        turn += 1
    return taken


def embedded_engine() -> Engine:
    model = load(str(ensure_directory(None, lambda *_: None)), device="cpu", dtype="auto", progress=lambda *_: None)
    model.attention.allocate(NUM_PAGES)
    placed = Placed(model, PageCache(NUM_PAGES, model.attention.page_size, has_prefix_index=False))
    return Engine({MAIN: placed}, Vocabulary(model.info.eos_token_ids), Limits(max_rows=16))


def report(name: str, taken: tuple[list[float], list[float]], unit: float) -> None:
    cells = [f"{min(t) * unit:9.1f} {statistics.median(t) * unit:9.1f}" for t in taken]
    gain = statistics.median(taken[0]) / statistics.median(taken[1])
    print(f"{name:28} {cells[0]} {cells[1]} {gain:6.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.engine.topk_bench")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="of the real engine's requests; 0 leaves it out")
    options = parser.parse_args()
    print(f"{'':28} {'steps min':>9} {'median':>9} {'fused min':>9} {'median':>9} {'gain':>6}")
    with torch.inference_mode():
        for rows in (1, 16, 64):
            for k in (8, 20):
                report(f"{rows} rows, k {k}, us", seconds_of_rows(rows, k, options.repeats), 1e6)
    if not options.rounds:
        return
    engine = embedded_engine()
    for name in (BEAMS, LOGPROBS):
        rounds = [seconds_of_ticks(engine, requests(name)) for _ in range(options.rounds)]
        steps, fused = ([s for taken in rounds for s in taken[at]] for at in (0, 1))
        report(f"{name}, ms", (steps, fused), 1e3)


if __name__ == "__main__":
    main()

"""Whether a model of a real shape is right: against transformers, decode against prefill, alone against in a batch."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from decoding.contract.params import LogprobsParams, Request, StoppingParams
from loadtest.engine.bench import GREEDY, Bench
from loadtest.gpu_accept.report import Check
from loadtest.gpu_accept.session import Session, Subject

MEAN_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
"""Of log-probs, against transformers' own forward."""
ROWS = 12


def check(session: Session) -> Iterator[Check]:
    subject = session.subject
    bench, dtype = subject.bench, subject.dtype
    found = _scored(bench, subject.prompt)
    yield _compared("prefill agrees with transformers", found, subject.own_logprobs, dtype)
    yield _decode(bench, dtype)
    yield _batch(subject)
    bench.engine.check_integrity()


def _scored(bench: Bench, prompt: Sequence[int]) -> tuple[float, ...]:
    request = Request(tuple(prompt), logits=GREEDY, stopping=StoppingParams(0), logprobs=LogprobsParams(prompt=0))
    return bench.run([request]).prompt_logprobs[0]


def _compared(name: str, found: Sequence[float], expected: Sequence[float], dtype: torch.dtype) -> Check:
    errors = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    mean = statistics.mean(errors)
    detail = f"log-probs differ by {mean:.2g} on average, {max(errors):.2g} at most"
    return Check(name, mean < MEAN_ERROR[dtype], detail)


def _decode(bench: Bench, dtype: torch.dtype) -> Check:
    """Log-probs of tokens as they were decoded, against those of the same tokens read as a prompt."""
    request = replace(bench.requests(1, seed=11)[0], logprobs=LogprobsParams(output=0))
    decoded = bench.run([request])
    read = _scored(bench, request.prompt_ids + decoded.tokens[0])[-len(decoded.tokens[0]) :]
    return _compared("decode agrees with prefill", decoded.logprobs[0], read, dtype)


def _batch(subject: Subject) -> Check:
    """Rows alone, and among others that come and go. In half precision exact only where batch invariance is on."""
    bench = subject.bench
    requests = bench.requests(min(ROWS, bench.load.num_rows), 12)
    shorter = [
        replace(
            request,
            prompt_ids=request.prompt_ids[: 1 + 7 * at],
            stopping=replace(request.stopping, max_tokens=max(1, bench.load.new - at)),
            logprobs=LogprobsParams(output=0),
        )
        for at, request in enumerate(requests)
    ]
    together, alone = bench.run(shorter), [bench.run([request]) for request in shorter]
    equal = sum(one.tokens[0] == tokens for one, tokens in zip(alone, together.tokens, strict=True))
    bitwise = sum(one.logprobs[0] == found for one, found in zip(alone, together.logprobs, strict=True))
    must = subject.is_batch_invariant or subject.dtype == torch.float32
    is_passed = equal == len(alone) or not must
    if subject.is_batch_invariant:
        is_passed &= bitwise == len(alone)
    detail = f"{equal} of {len(alone)} rows give the same tokens, {bitwise} the same log-probs bit for bit"
    return Check("alone is as in a batch", is_passed, detail)

"""The figures of a run, from its outcomes: percentiles, rates and counts. Knows no scenario and prints nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest.outcome import Completed, Failed, Outcome


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Seconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class ErrorCount:
    kind: str
    count: int
    example: str


@dataclass(frozen=True, slots=True)
class Summary:
    """One run. Rates are over `seconds`, from the first request's start to the last answer's end.

    short: answers with fewer tokens than asked for, which make a throughput hard to compare.
    client_cpu_share: cores the client took (1.0 is one whole core), out of those the server could have had.
    """

    requests: int
    completed: int
    short: int
    errors: tuple[ErrorCount, ...]
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    requests_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    time_to_first_token: Percentiles | None
    inter_token_latency: Percentiles | None
    time_per_output_token: Percentiles | None
    end_to_end: Percentiles | None
    client_cpu_share: float


def percentiles(values: Iterable[float]) -> Percentiles | None:
    """None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Percentiles(p50=_quantile(ordered, 0.5), p90=_quantile(ordered, 0.9), p99=_quantile(ordered, 0.99))


def _quantile(ordered: Sequence[float], q: float) -> float:
    """Linear interpolation between the two nearest ranks, as numpy does."""
    position = q * (len(ordered) - 1)
    low, high = math.floor(position), math.ceil(position)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarise(outcomes: Sequence[Outcome], client_cpu_seconds: float) -> Summary:
    """Of at least one outcome."""
    done = [outcome for outcome in outcomes if isinstance(outcome, Completed)]
    seconds = max(o.ended for o in outcomes) - min(o.started for o in outcomes)
    prompt_tokens = sum(o.prompt_tokens for o in done)
    completion_tokens = sum(o.completion_tokens for o in done)
    return Summary(
        requests=len(outcomes),
        completed=len(done),
        short=sum(o.completion_tokens < o.wanted_tokens for o in done),
        errors=_errors(o for o in outcomes if isinstance(o, Failed)),
        seconds=seconds,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        requests_per_second=len(done) / seconds,
        output_tokens_per_second=completion_tokens / seconds,
        total_tokens_per_second=(prompt_tokens + completion_tokens) / seconds,
        time_to_first_token=percentiles(o.time_to_first_token for o in done),
        inter_token_latency=percentiles(gap for o in done for gap in o.gaps),
        time_per_output_token=percentiles(t for o in done if (t := o.time_per_output_token) is not None),
        end_to_end=percentiles(o.end_to_end for o in done),
        client_cpu_share=client_cpu_seconds / seconds,
    )


def _errors(failed: Iterable[Failed]) -> tuple[ErrorCount, ...]:
    failures = list(failed)
    examples = {failure.kind: failure.detail for failure in reversed(failures)}
    counts = Counter(failure.kind for failure in failures)
    return tuple(ErrorCount(kind, count, examples[kind]) for kind, count in counts.most_common())

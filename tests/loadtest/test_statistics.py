import numpy
import pytest

from loadtest.outcome import Completed, Failed
from loadtest.statistics import Percentiles, percentiles, summarise


def completed(started: float, *arrivals: float, tokens: int, wanted: int = 4) -> Completed:
    return Completed(started, arrivals, arrivals[-1], prompt_tokens=10, completion_tokens=tokens, wanted_tokens=wanted)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_percentiles_are_numpys(count: int) -> None:
    values = numpy.random.default_rng(count).random(count).tolist()
    found = percentiles(values)
    assert found is not None
    assert [found.p50, found.p90, found.p99] == pytest.approx(numpy.percentile(values, [50, 90, 99]).tolist())


def test_nothing_has_no_percentiles() -> None:
    assert percentiles([]) is None


def test_rates_are_over_the_time_from_first_start_to_last_end() -> None:
    summary = summarise([completed(1.0, 2.0, 3.0, tokens=4), completed(2.0, 4.0, 6.0, tokens=6)], 0.5)
    assert summary.seconds == 5.0
    assert summary.output_tokens_per_second == 2.0
    assert summary.total_tokens_per_second == 6.0
    assert summary.requests_per_second == 0.4
    assert summary.client_cpu_share == 0.1


def test_errors_count_by_kind_and_not_towards_any_figure() -> None:
    failures = [Failed(0.0, 9.0, "429", "full"), Failed(0.0, 10.0, "429", "later"), Failed(0.0, 1.0, "timeout", "")]
    summary = summarise([completed(0.0, 1.0, 2.0, tokens=4), *failures], 0.0)
    assert [(error.kind, error.count, error.example) for error in summary.errors] == [
        ("429", 2, "full"),
        ("timeout", 1, ""),
    ]
    assert (summary.requests, summary.completed) == (4, 1)
    assert summary.output_tokens_per_second == 0.4
    assert summary.end_to_end == Percentiles(2.0, 2.0, 2.0)


def test_answers_shorter_than_asked_are_counted() -> None:
    outcomes = [completed(0.0, 1.0, tokens=tokens, wanted=4) for tokens in (3, 4, 4)]
    assert summarise(outcomes, 0.0).short == 1


def test_a_run_without_an_answer_has_no_latencies() -> None:
    summary = summarise([Failed(0.0, 1.0, "500", "")], 0.0)
    assert summary.time_to_first_token is None
    assert summary.output_tokens_per_second == 0

"""/metrics as a strict reader takes it: what promtool's linter and Prometheus itself would object to."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from decoding.contract.frames import Loaded, Stats
from server.observe.metrics import ENDPOINTS, Metrics
from server.observe.vllm_aliases import VllmAliases

COUNTED = ("_total", "_sum", "_count", "_bucket", "_created")


def exposition() -> str:
    metrics = Metrics("1.2.3")
    metrics.registry.register(VllmAliases(metrics, 'na"me\\', has_prefix_cache=True))
    metrics.worker_loaded(Loaded(10, 10, (), 20, 16, 8, "cpu", "float32", "X"))
    metrics.worker_ticked(Stats(1, 0, {"sampling": 2}, {"main": 5}, 0.01, 2, 7, 1, 2, 3, 4))
    for strategy in ("sampling", "pooling"):
        metrics.strategy(strategy).end_to_end.observe(0.2)
        metrics.strategy(strategy).time_to_first_token.observe(100.0)
    metrics.requests.labels(ENDPOINTS[-1], "pooling", "success").inc()
    return metrics.exposition().decode()


@pytest.fixture(scope="module")
def text() -> str:
    return exposition()


@pytest.fixture(scope="module")
def families(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


def test_every_family_has_a_help_and_a_type_and_comes_once(text: str, families: list[Metric]) -> None:
    assert len(families) > 30
    for kind in ("HELP", "TYPE"):
        named = Counter(line.split(" ")[2] for line in text.splitlines() if line.startswith(f"# {kind} "))
        assert set(named.values()) == {1}
    assert len([line for line in text.splitlines() if line.startswith("# TYPE ")]) == len(families)
    assert not [family.name for family in families if not family.documentation or family.type == "unknown"]


def test_counters_end_in_total_and_nothing_else_does(families: list[Metric]) -> None:
    """But for vLLM's iteration_tokens_total, a histogram that is called so there."""
    for family in families:
        if family.type == "counter":
            assert {sample.name for sample in family.samples} == {f"{family.name}_total"}
        else:
            assert not family.name.endswith(COUNTED) or family.name == "vllm:iteration_tokens_total"


def test_no_series_comes_twice(families: list[Metric]) -> None:
    series = Counter((s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples)
    assert [each for each, count in series.items() if count > 1] == []


def test_names_bear_base_units_and_values_are_numbers(families: list[Metric]) -> None:
    for family in families:
        assert not family.name.endswith(("_ms", "_milliseconds", "_minutes", "_kilobytes", "_megabytes")), family.name
        assert not [s for s in family.samples if math.isnan(s.value)], family.name
        assert not [s for s in family.samples if family.type != "gauge" and s.value < 0], family.name


def test_buckets_grow_to_infinity_and_say_what_the_count_says(families: list[Metric]) -> None:
    histograms = [family for family in families if family.type == "histogram"]
    assert len(histograms) > 15
    for family in histograms:
        buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
        counts, sums = {}, set()
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            if sample.name.endswith("_bucket"):
                buckets.setdefault(labels, []).append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_count"):
                counts[labels] = sample.value
            else:
                sums.add(labels)
        assert buckets.keys() == counts.keys() == sums, family.name
        for labels, steps in buckets.items():
            assert steps == sorted(steps), family.name
            assert [le for le, _ in steps] == sorted({le for le, _ in steps}), family.name
            assert [value for _, value in steps] == sorted(value for _, value in steps), family.name
            assert steps[-1] == (math.inf, counts[labels]), family.name

"""The series: their names, that they only grow, and that vLLM's names say the same."""

from __future__ import annotations

import pytest

from decoding.contract.frames import Beside, Loaded, Stats
from server.observe.metrics import Metrics
from server.observe.vllm_aliases import VllmAliases
from tests.server.fake_worker import ANSWER
from tests.server.world import world

GAUGES = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "cache_config_info"]
COUNTERS = ["prompt_tokens", "generation_tokens", "request_success", "num_preemptions"]
COUNTERS += ["prefix_cache_queries", "prefix_cache_hits"]
HISTOGRAMS = ["time_to_first_token_seconds", "inter_token_latency_seconds", "request_time_per_output_token_seconds"]
HISTOGRAMS += ["e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds"]
HISTOGRAMS += ["request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens"]
HISTOGRAMS += ["iteration_tokens_total"]


def stats(used_pages: dict[str, int] | None = None, **figures: int) -> Stats:
    values = {"preemptions_total": 0, "prefix_queries_total": 0, "prefix_hits_total": 0, "computed_tokens_total": 0}
    return Stats(1, 0, {"sampling": 2}, used_pages or {"main": 5}, 0.01, 2, 7, **(values | figures))


def with_aliases() -> Metrics:
    metrics = Metrics("1.2.3")
    metrics.registry.register(VllmAliases(metrics, "m", has_prefix_cache=True))
    return metrics


def test_every_vllm_name_is_exposed_with_the_models_name_before_any_request() -> None:
    text = with_aliases().exposition().decode()
    expected = [f"vllm:{name}{{" for name in GAUGES] + [f"vllm:{name}_total{{" for name in COUNTERS]
    expected += [f"vllm:{name}_count{{" for name in HISTOGRAMS]
    assert [name for name in expected if name not in text] == []
    assert all('model_name="m"' in line for line in text.splitlines() if line.startswith("vllm:"))


def test_counters_keep_growing_when_a_new_worker_counts_from_zero() -> None:
    metrics = Metrics("test")
    metrics.worker_ticked(stats(computed_tokens_total=10, preemptions_total=2))
    metrics.worker_ticked(stats(computed_tokens_total=15, preemptions_total=2))
    metrics.worker_lost()
    metrics.worker_ticked(stats(computed_tokens_total=4))
    assert metrics.registry.get_sample_value("polydecode_computed_tokens_total") == 19
    assert metrics.registry.get_sample_value("polydecode_preemptions_total") == 2


def test_speculation_is_counted_over_all_workers() -> None:
    metrics = Metrics("test")
    metrics.worker_ticked(stats(drafted_total=8, accepted_total=3))
    metrics.worker_ticked(stats(drafted_total=12, accepted_total=6))
    metrics.worker_lost()
    metrics.worker_ticked(stats(drafted_total=5, accepted_total=1))
    assert metrics.registry.get_sample_value("polydecode_spec_drafted_total") == 17
    assert metrics.registry.get_sample_value("polydecode_spec_accepted_total") == 7


def test_nothing_runs_on_a_lost_worker() -> None:
    metrics = Metrics("test")
    metrics.worker_ticked(stats())
    metrics.worker_lost()
    value = metrics.registry.get_sample_value
    assert [value(f"polydecode_{name}") for name in ("running_requests", "kv_pages_used")] == [0, 0]
    assert value("polydecode_live_rows", {"strategy": "sampling"}) == 0


def test_idle_heartbeats_are_no_ticks() -> None:
    metrics = Metrics("test")
    metrics.worker_ticked(Stats(0, 0, {}, {}, 0.0, 0, 0, 0, 0, 0, 0))
    assert metrics.registry.get_sample_value("polydecode_tick_seconds_count") == 0


def test_cache_usage_is_a_share_of_the_pages() -> None:
    metrics = with_aliases()
    metrics.worker_loaded(Loaded(10, 10, (), 20, 16, 8, "cpu", "float32", "X"))
    metrics.worker_ticked(stats())
    value = metrics.registry.get_sample_value
    assert value("vllm:kv_cache_usage_perc", {"model_name": "m"}) == 0.25
    labels = {"model_name": "m", "block_size": "16", "num_gpu_blocks": "20", "enable_prefix_caching": "True"}
    assert value("vllm:cache_config_info", labels) == 1


def test_the_pages_of_every_model_are_told_and_all_count() -> None:
    metrics = with_aliases()
    beside = (Beside("small", "Y", 80, 32),)
    metrics.worker_loaded(Loaded(10, 10, (), 20, 16, 8, "cpu", "float32", "X", beside=beside))
    metrics.worker_ticked(stats(used_pages={"main": 5, "small": 20}))
    value = metrics.registry.get_sample_value
    used = {model: value("polydecode_model_kv_pages_used", {"model": model}) for model in ("main", "small")}
    assert used == {"main": 5, "small": 20}
    assert value("polydecode_model_kv_pages", {"model": "small"}) == 80
    assert (value("polydecode_kv_pages_used"), value("polydecode_kv_pages")) == (25, 100)
    labels = {"model_name": "m", "block_size": "16", "num_gpu_blocks": "20", "enable_prefix_caching": "True"}
    assert value("vllm:cache_config_info", labels) == 1
    metrics.worker_lost()
    assert value("polydecode_model_kv_pages_used", {"model": "small"}) == 0


async def test_a_served_request_shows_in_both_families() -> None:
    async with world() as w:
        w.metrics.registry.register(VllmAliases(w.metrics, "m", has_prefix_cache=True))
        await w.ask(ANSWER, 7, 7, num_tokens=4).tokens()
        value, model = w.metrics.registry.get_sample_value, {"model_name": "m"}
        assert value("vllm:prompt_tokens_total", model) == 3
        assert value("vllm:generation_tokens_total", model) == 4
        assert value("vllm:request_success_total", model | {"finished_reason": "length"}) == 1
        for name in HISTOGRAMS[:1] + HISTOGRAMS[2:9]:
            assert value(f"vllm:{name}_count", model) == 1, name
        assert value("vllm:inter_token_latency_seconds_count", model) == 3
        assert value("vllm:request_prefill_time_seconds_sum", model) == pytest.approx(0.02)
        assert value("polydecode_cached_tokens_total", {"strategy": "sampling"}) == 3


def test_an_alias_histogram_sums_its_strategies() -> None:
    metrics = with_aliases()
    metrics.strategy("sampling").end_to_end.observe(0.2)
    metrics.strategy("best_of").end_to_end.observe(3.0)
    value = metrics.registry.get_sample_value
    buckets = [
        value("vllm:e2e_request_latency_seconds_bucket", {"model_name": "m", "le": le})
        for le in ("0.1", "0.3", "5.0", "+Inf")
    ]
    assert buckets == [0, 1, 2, 2]
    assert value("vllm:e2e_request_latency_seconds_sum", {"model_name": "m"}) == pytest.approx(3.2)

"""The same figures under vLLM's names, so that existing boards, autoscalers and inference gateways work unconfigured.

A collector that reads our own series at scrape time and sums their labels away; nothing is recorded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby

from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from decoding.contract.params import MAIN
from server.observe.metrics import Metrics

_FINISHED = {"success": "stop", "length": "length", "cancelled": "abort", "error": "error"}


class VllmAliases(Collector):
    """`model_name` is the label vLLM's boards select by: the first served name, given by the operator."""

    def __init__(self, metrics: Metrics, model_name: str, *, has_prefix_cache: bool) -> None:
        self._metrics = metrics
        self._model_name = model_name
        self._has_prefix_cache = has_prefix_cache

    def collect(self) -> Iterable[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterable[Metric]:
        ours = self._metrics
        yield self._gauge("num_requests_running", ours.running_requests)
        yield self._gauge("num_requests_waiting", ours.waiting_requests)
        usage = GaugeMetricFamily("vllm:kv_cache_usage_perc", "KV cache in use, 0 to 1.", labels=["model_name"])
        pages = _value(ours.kv_pages)
        usage.add_metric([self._model_name], _value(ours.kv_pages_used) / pages if pages else 0.0)
        yield usage
        yield self._cache_config()

    def _cache_config(self) -> Metric:
        labels = ["model_name", "block_size", "num_gpu_blocks", "enable_prefix_caching"]
        family = GaugeMetricFamily("vllm:cache_config_info", "Shape of the KV cache.", labels=labels)
        block_size, blocks = (
            int(_value(gauge)) for gauge in (self._metrics.kv_page_size, self._metrics.model_kv_pages.labels(MAIN))
        )
        family.add_metric([self._model_name, str(block_size), str(blocks), str(self._has_prefix_cache)], 1)
        return family

    def _counters(self) -> Iterable[Metric]:
        ours = self._metrics
        yield self._counter("prompt_tokens", ours.prompt_tokens)
        yield self._counter("generation_tokens", ours.generated_tokens)
        yield self._counter("num_preemptions", ours.preemptions)
        yield self._counter("prefix_cache_queries", ours.prefix_queries)
        yield self._counter("prefix_cache_hits", ours.prefix_hits)
        yield self._finished()

    def _finished(self) -> Metric:
        labels = ["model_name", "finished_reason"]
        family = CounterMetricFamily("vllm:request_success", "Requests that ended, by reason.", labels=labels)
        for outcome, reason in _FINISHED.items():
            samples = [
                sample for sample in _samples(self._metrics.requests, "_total") if sample.labels["outcome"] == outcome
            ]
            family.add_metric([self._model_name, reason], sum(sample.value for sample in samples))
        return family

    def _histograms(self) -> Iterable[Metric]:
        ours = self._metrics
        yield self._histogram("time_to_first_token_seconds", ours.time_to_first_token)
        yield self._histogram("inter_token_latency_seconds", ours.inter_token_latency)
        yield self._histogram("request_time_per_output_token_seconds", ours.time_per_output_token)
        yield self._histogram("e2e_request_latency_seconds", ours.end_to_end)
        yield self._histogram("request_queue_time_seconds", ours.queue_time)
        yield self._histogram("request_prefill_time_seconds", ours.prefill_time)
        yield self._histogram("request_decode_time_seconds", ours.decode_time)
        yield self._histogram("request_prompt_tokens", ours.request_prompt_tokens)
        yield self._histogram("request_generation_tokens", ours.request_generated_tokens)
        yield self._histogram("iteration_tokens_total", ours.tick_tokens)

    def _gauge(self, name: str, source: Gauge) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", _text(source), labels=["model_name"])
        family.add_metric([self._model_name], _value(source))
        return family

    def _counter(self, name: str, source: Counter) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", _text(source), labels=["model_name"])
        family.add_metric([self._model_name], sum(sample.value for sample in _samples(source, "_total")))
        return family

    def _histogram(self, name: str, source: Histogram) -> Metric:
        family = HistogramMetricFamily(f"vllm:{name}", _text(source), labels=["model_name"])
        total = sum(sample.value for sample in _samples(source, "_sum"))
        family.add_metric([self._model_name], _buckets(source), total)
        return family


def _samples(source: Collector, suffix: str) -> list[Sample]:
    return [sample for metric in source.collect() for sample in metric.samples if sample.name.endswith(suffix)]


def _value(gauge: Gauge) -> float:
    return sum(sample.value for metric in gauge.collect() for sample in metric.samples)


def _text(source: Collector) -> str:
    return next(iter(source.collect())).documentation


def _buckets(source: Histogram) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound, summed over the labels."""
    border: Callable[[Sample], float] = lambda sample: float(sample.labels["le"])  # noqa: E731
    samples = sorted(_samples(source, "_bucket"), key=border)
    groups = (list(group) for _, group in groupby(samples, key=border))
    return [(group[0].labels["le"], sum(sample.value for sample in group)) for group in groups]

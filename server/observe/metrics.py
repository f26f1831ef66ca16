"""Every Prometheus series of the server, in a registry of its own; vLLM's names: `server/observe/vllm_aliases.py`.

The batcher and its tickets feed it. Labels come from a closed set (our endpoints, strategies, outcomes), never from a
client. Counters that the worker restarts at 0 keep growing here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from decoding.contract.frames import Loaded, Stats
from decoding.contract.params import MAIN, PARAMS

ENDPOINTS = ("completions", "chat", "responses", "embeddings")
OUTCOMES = ("success", "length", "cancelled", "rejected", "error")
NO_STRATEGY = "none"  # of a request refused before its strategy was known

_LATENCY = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_TOKEN_GAP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_DURATION = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class StrategySeries:
    """The series of one strategy, looked up once so that a token costs no label search."""

    prompt_tokens: Counter
    generated_tokens: Counter
    cached_tokens: Counter
    time_to_first_token: Histogram
    inter_token_latency: Histogram
    time_per_output_token: Histogram
    queue_time: Histogram
    prefill_time: Histogram
    decode_time: Histogram
    end_to_end: Histogram
    request_prompt_tokens: Histogram
    request_generated_tokens: Histogram


@dataclass(frozen=True, slots=True)
class Totals:
    """The worker's growing figures when last heard of; all 0 for a new worker."""

    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    computed_tokens: int = 0
    drafted: int = 0
    accepted: int = 0

    @classmethod
    def of(cls, stats: Stats) -> Totals:
        return cls(
            stats.preemptions_total,
            stats.prefix_queries_total,
            stats.prefix_hits_total,
            stats.computed_tokens_total,
            stats.drafted_total,
            stats.accepted_total,
        )


class _Count(Collector):
    """A counter that is kept elsewhere."""

    def __init__(self, name: str, text: str, read: Callable[[], int]) -> None:
        self._name, self._text, self._read = name, text, read

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._text, value=self._read())


class Metrics:
    """strategies: the names of all there are."""

    def __init__(self, version: str, strategies: Collection[str] = PARAMS) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._make_counters()
        self._make_gauges()
        self._make_histograms()
        self._totals = Totals()
        self._used_pages: dict[str, int] = {}
        self._live: dict[str, int] = dict.fromkeys(strategies, 0)
        self._strategies = {name: self._series(name) for name in strategies}
        self.build_info.labels(version).set(1)
        for endpoint in ENDPOINTS:
            for strategy in (*strategies, NO_STRATEGY):
                for outcome in OUTCOMES:
                    self.requests.labels(endpoint, strategy, outcome)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"polydecode_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"polydecode_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"polydecode_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _make_counters(self) -> None:
        self.requests = self._counter(
            "requests", "Generation requests over HTTP, by how they ended.", "endpoint", "strategy", "outcome"
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of started requests.", "strategy")
        self.generated_tokens = self._counter("generated_tokens", "Tokens returned.", "strategy")
        self.cached_tokens = self._counter("cached_tokens", "Prompt tokens taken from the prefix cache.", "strategy")
        self.computed_tokens = self._counter("computed_tokens", "Positions run through the model, returned or not.")
        self.preemptions = self._counter("preemptions", "Rows dropped for want of KV pages and fed again.")
        self.prefix_queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self.prefix_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self.drafted = self._counter("spec_drafted", "Tokens proposed by speculation.")
        self.accepted = self._counter("spec_accepted", "Proposed tokens that were accepted.")
        self.worker_restarts = self._counter("worker_restarts", "Decode workers that were lost and replaced.")

    def _make_gauges(self) -> None:
        self.queue_rows = self._gauge("queue_rows", "Rows that wait for the engine.")
        self.waiting_requests = self._gauge("waiting_requests", "Requests that wait for the engine.")
        self.running_requests = self._gauge("running_requests", "Requests in the engine's batch.")
        self.live_rows = self._gauge("live_rows", "Rows in the engine's batch.", "strategy")
        self.kv_pages_used = self._gauge("kv_pages_used", "KV cache pages in use, over all models.")
        self.kv_pages = self._gauge("kv_pages", "KV cache pages in all, over all models.")
        self.kv_page_size = self._gauge("kv_page_size", "Tokens of one KV cache page.")
        self.model_kv_pages_used = self._gauge("model_kv_pages_used", "KV cache pages in use, by model.", "model")
        self.model_kv_pages = self._gauge("model_kv_pages", "KV cache pages in all, by model.", "model")
        self.build_info = self._gauge("build_info", "1, labelled with the version.", "version")

    def _make_histograms(self) -> None:
        make = self._histogram
        self.tick_seconds = make("tick_seconds", "Duration of an engine tick.", _TICK)
        self.tick_rows = make("tick_rows", "Rows fed in a tick.", _ROWS)
        self.tick_tokens = make("tick_tokens", "Tokens fed in a tick.", _TOKENS)
        self.time_to_first_token = make("time_to_first_token_seconds", "Arrival to first token.", _LATENCY, "strategy")
        self.inter_token_latency = make("inter_token_latency_seconds", "Token to next token.", _TOKEN_GAP, "strategy")
        self.time_per_output_token = make(
            "time_per_output_token_seconds", "Mean gap of a request's tokens.", _TOKEN_GAP, "strategy"
        )
        self.queue_time = make("queue_seconds", "Waiting for the engine.", _DURATION, "strategy")
        self.prefill_time = make("prefill_seconds", "Start to first token, in the engine.", _DURATION, "strategy")
        self.decode_time = make("decode_seconds", "First to last token, in the engine.", _DURATION, "strategy")
        self.end_to_end = make("end_to_end_seconds", "Arrival to last token.", _DURATION, "strategy")
        self.request_prompt_tokens = make("request_prompt_tokens", "Prompt tokens of a request.", _TOKENS, "strategy")
        self.request_generated_tokens = make(
            "request_generated_tokens", "Tokens returned to a request.", _TOKENS, "strategy"
        )

    def _series(self, strategy: str) -> StrategySeries:
        fields = StrategySeries.__dataclass_fields__
        return StrategySeries(**{name: getattr(self, name).labels(strategy) for name in fields})

    def strategy(self, name: str) -> StrategySeries:
        """The series of a strategy; the name is one of ours."""
        if name not in self._strategies:
            self._strategies[name] = self._series(name)
        return self._strategies[name]

    def exposition(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def watch_queue(self, num_rows: Callable[[], int], num_waiting: Callable[[], int]) -> None:
        """Reads these two at every scrape."""
        self.queue_rows.set_function(num_rows)
        self.waiting_requests.set_function(num_waiting)

    def watch_log(self, num_dropped: Callable[[], int]) -> None:
        """Reads it at every scrape."""
        self.registry.register(
            _Count("polydecode_log_lines_dropped", "Log lines that nobody read in time.", num_dropped)
        )

    def worker_loaded(self, loaded: Loaded) -> None:
        pages = {MAIN: loaded.num_pages} | {each.name: each.num_pages for each in loaded.beside}
        self.kv_pages.set(sum(pages.values()))
        for model, count in pages.items():
            self.model_kv_pages.labels(model).set(count)
        self._set_used_pages(dict.fromkeys(pages, 0))
        self.kv_page_size.set(loaded.page_size)

    def worker_lost(self) -> None:
        """Nothing runs; the next worker counts from 0."""
        self.worker_restarts.inc()
        self._totals = Totals()
        self.running_requests.set(0)
        self._set_used_pages(dict.fromkeys(self._used_pages, 0))
        self._set_live_rows({})

    def worker_ticked(self, stats: Stats) -> None:
        self.running_requests.set(stats.running)
        self._set_used_pages(stats.used_pages)
        self._set_live_rows(stats.live_rows)
        if stats.tick_rows > 0:
            self.tick_seconds.observe(stats.tick_seconds)
            self.tick_rows.observe(stats.tick_rows)
            self.tick_tokens.observe(stats.tick_tokens)
        self._advance(Totals.of(stats))

    def _set_used_pages(self, used: dict[str, int]) -> None:
        """By model, of which a worker has always the same."""
        if used == self._used_pages:
            return
        self._used_pages = used
        self.kv_pages_used.set(sum(used.values()))
        for model, count in used.items():
            self.model_kv_pages_used.labels(model).set(count)

    def _set_live_rows(self, live_rows: dict[str, int]) -> None:
        for strategy in self._live.keys() | live_rows.keys():
            self.live_rows.labels(strategy).set(live_rows.get(strategy, 0))
        self._live = live_rows

    def _advance(self, totals: Totals) -> None:
        """Adds what the worker did since it was last heard of."""
        if totals == self._totals:
            return
        for name in Totals.__dataclass_fields__:
            counter: Counter = getattr(self, name)
            counter.inc(max(getattr(totals, name) - getattr(self._totals, name), 0))
        self._totals = totals

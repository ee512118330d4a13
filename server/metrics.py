"""The front end's Prometheus metrics under the contract's names, and the engine's load under vLLM's names."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.messages import PageGroup, Stats

Outcome = Literal["completed", "rejected", "failed", "cancelled"]
UNKNOWN_MODE = "unknown"  # of requests that were rejected before their mode was known

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Metrics:
    """All metrics of one app, in a registry of their own. `engine_load` is asked when they are read."""

    def __init__(self, engine_load: Callable[[], Stats]) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by how they ended", "mode", "outcome")
        self.tokens = self._counter("tokens", "Tokens by kind", "mode", "kind")
        self.reasoning_finish = self._counter("reasoning_finish", "How thinking ended", "how")
        self.first_token = self._seconds("time_to_first_token", "Until the first token")
        self.first_answer_token = self._seconds("time_to_first_answer_token", "Until the first token of the answer")
        self.per_token = self._seconds("time_per_output_token", "Between tokens, mean of a request", TOKEN_SECONDS)
        self.request = self._seconds("request", "Whole requests")
        self.refused = self._counter("requests_rejected", "Requests refused for the server's load", "reason")
        self.running = self._gauge("requests_running", "Requests that have or had a place in the engine")
        self.waiting = self._gauge("requests_waiting", "Requests that wait for their first place in the engine")
        self.registry.register(_EngineLoad(engine_load))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def rejected(self, mode: str = UNKNOWN_MODE) -> None:
        """Counts a request that never reached the engine."""
        self.requests.labels(mode, "rejected").inc()

    @contextmanager
    def watch(self, mode: str, arrived: float) -> Iterator["RequestWatch"]:
        """Times one request, from `arrived` (perf_counter) to the end of the block."""
        watch = RequestWatch(self, mode, arrived)
        try:
            yield watch
        finally:
            watch.close()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"twogear_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"twogear_{name}", text, ["mode"], registry=self.registry)

    def _seconds(self, name: str, text: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(f"twogear_{name}_seconds", text, ["mode"], buckets=buckets, registry=self.registry)


class RequestWatch:
    """The clock of one request. `outcome` stays "failed" unless the request is told to have ended otherwise."""

    def __init__(self, metrics: Metrics, mode: str, arrived: float) -> None:
        self.outcome: Outcome = "failed"
        self._metrics = metrics
        self._mode = mode
        self._started = arrived
        self._first: float | None = None
        self._last = arrived
        self._has_started = False
        self._answered = False
        self._generated = 0
        metrics.waiting.labels(mode).inc()

    def start(self) -> None:
        """The request has its first place in the engine."""
        self._has_started = True
        self._metrics.waiting.labels(self._mode).dec()
        self._metrics.running.labels(self._mode).inc()

    def advance(self, *, answering: bool) -> None:
        """Tokens came; `answering` once one of them belongs to the answer."""
        self._last = perf_counter()
        if self._first is None:
            self._first = self._last
            self._metrics.first_token.labels(self._mode).observe(self._last - self._started)
        if answering and not self._answered:
            self._answered = True
            self._metrics.first_answer_token.labels(self._mode).observe(self._last - self._started)

    def count(self, *, prompt: int, cached: int, reasoning: int, answer: int) -> None:
        """Adds the request's tokens."""
        self._generated = reasoning + answer
        for kind, number in {"prompt": prompt, "cached": cached, "reasoning": reasoning, "answer": answer}.items():
            self._metrics.tokens.labels(self._mode, kind).inc(number)

    def close(self) -> None:
        """Ends the request's time."""
        metrics, mode = self._metrics, self._mode
        (metrics.running if self._has_started else metrics.waiting).labels(mode).dec()
        if self._first is not None and self._generated > 1:
            metrics.per_token.labels(mode).observe((self._last - self._first) / (self._generated - 1))
        metrics.request.labels(mode).observe(perf_counter() - self._started)
        metrics.requests.labels(mode, self.outcome).inc()


class _EngineLoad(Collector):
    """What the engine last reported: its pages by group, what one holds, requests, and how full the cache is."""

    def __init__(self, engine_load: Callable[[], Stats]) -> None:
        self._engine_load = engine_load

    def collect(self) -> Iterable[Metric]:
        """Gauges only; those of the pages have a sample for each group."""
        pages = GaugeMetricFamily("twogear_kv_pages", "KV cache pages of the engine", labels=["group", "state"])
        sizes = GaugeMetricFamily("twogear_kv_page_tokens", "Tokens that one KV cache page holds", labels=["group"])
        load = self._engine_load()
        for group in load.page_groups:
            pages.add_metric([group.group, "used"], group.used)
            pages.add_metric([group.group, "cached"], group.cached)
            pages.add_metric([group.group, "free"], group.free)
            sizes.add_metric([group.group], group.page_size)
        yield from (pages, sizes)
        yield GaugeMetricFamily("vllm:num_requests_running", "Generations that the engine runs", load.running)
        yield GaugeMetricFamily("vllm:num_requests_waiting", "Generations that wait for the engine", load.waiting)
        usage = "Share of the KV cache's pages that requests hold, 1 is full"
        yield GaugeMetricFamily("vllm:kv_cache_usage_perc", usage, _usage(load.page_groups))


def _usage(groups: Sequence[PageGroup]) -> float:
    """All groups take their pages from one pool, so that each says the same of what is free."""
    used = sum(group.used for group in groups)
    pool = used + sum(group.cached for group in groups) + max((group.free for group in groups), default=0)
    return used / pool if pool else 0.0

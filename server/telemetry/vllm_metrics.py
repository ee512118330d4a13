"""vLLM's metrics under vLLM's names, labels and buckets, so that dashboards and alerts made for vLLM work here.

Names and buckets: `vllm/v1/metrics/loggers.py` and `buckets.py` of vLLM 0.32. vLLM counts in the engine what the front
end counts here: a request's times are those of the whole HTTP request, which may take several generations of the
engine. What only the engine can tell comes with its Stats. What is left out, and why: docs/observability.md.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.messages import STEP_TOKENS, PageGroup, Stats
from server.telemetry.record import GenerationRecord

LABELS = ("model_name", "engine")
ADAPTER_LABELS = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
ENGINE = "0"
REQUEST_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
TOKEN_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
TOKENS = (*(mantissa * 10**exponent for exponent in range(6) for mantissa in (1, 2, 5)), 1_000_000)
"""vLLM ends at the model's context, which is not known here before the engine is up."""
CHOICES = (1, 2, 5, 10, 20)
OLD_NAMES = {
    "vllm:gpu_cache_usage_perc": "vllm:kv_cache_usage_perc",
    "vllm:gpu_prefix_cache_queries": "vllm:prefix_cache_queries",
    "vllm:gpu_prefix_cache_hits": "vllm:prefix_cache_hits",
}
"""Names that vLLM has dropped and routers still read (production-stack's `engine_stats.py`), and today's."""
FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


@dataclass(frozen=True, kw_only=True)
class EngineView:
    """What is asked of the engine when the metrics are read.

    `ready`: whether requests are taken now. `load`: the last report, of all engines together. `replicas`: of each
    engine, whether it takes requests, and its last report. `queued`: how many generations wait here for a place in any
    of them. `cache_config`: how its cache is set up, empty until it is known. `max_adapters`: how many LoRA adapters
    may be in one batch; 0 without them.
    """

    model_name: str
    ready: Callable[[], bool]
    load: Callable[[], Stats]
    replicas: Callable[[], Sequence[tuple[bool, Stats]]]
    queued: Callable[[], int]
    cache_config: Callable[[], dict[str, str]]
    max_adapters: Callable[[], int]


class VllmMetrics:
    """Those that the front end counts, in `registry`."""

    def __init__(self, registry: CollectorRegistry, engine: EngineView) -> None:
        self._registry = registry
        self._values = (engine.model_name, ENGINE)
        self.adapters = AdapterRequests(engine.max_adapters)
        registry.register(self.adapters)
        self.tokens = TokenClock(self._values)
        registry.register(self.tokens)
        self._queries = self._counter("prefix_cache_queries", "Prompt tokens that were looked up in the prefix cache")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens that were found in the prefix cache")
        self._old_queries = self._counter("gpu_prefix_cache_queries", "An old name of vllm:prefix_cache_queries")
        self._old_hits = self._counter("gpu_prefix_cache_hits", "An old name of vllm:prefix_cache_hits")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens, those found in the prefix cache among them")
        self._cached = self._counter("prompt_tokens_cached", "Prompt tokens found in the prefix cache")
        by_source = self._labelled("prompt_tokens_by_source", "Prompt tokens by where they came from", "source")
        self._by_source = {
            source: by_source.labels(*self._values, source)
            for source in ("local_compute", "local_cache_hit", "external_kv_transfer")
        }
        cached = self._labelled(
            "prompt_tokens_cached_by_source", "Prompt tokens found in a cache, by its tier", "source"
        )
        self._device = cached.labels(*self._values, "device")
        success = self._labelled("request_success", "Choices of requests by how they ended", "finished_reason")
        self._success = {reason: success.labels(*self._values, reason) for reason in FINISH_REASONS}
        self._prompt_size = self._histogram("request_prompt_tokens", "Prompt tokens of a choice", TOKENS)
        self._answer_size = self._histogram("request_generation_tokens", "Generated tokens of a choice", TOKENS)
        self._computed = self._histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens of a choice that no cache had", TOKENS
        )
        self._longest = self._histogram(
            "request_max_num_generation_tokens", "Generated tokens of a request's longest choice", TOKENS
        )
        self._n = self._histogram("request_params_n", "Choices of a request", CHOICES)
        self._max_tokens = self._histogram("request_params_max_tokens", "The token limit of a request", TOKENS)
        self._first_token = self._seconds("time_to_first_token", "Until a request's first token", FIRST_TOKEN_SECONDS)
        self._per_token = self._seconds(
            "request_time_per_output_token", "Between a request's tokens, its mean", TOKEN_SECONDS
        )
        self._whole = self._seconds("e2e_request_latency", "Whole requests")
        self._queue = self._seconds("request_queue_time", "Until a request has a place in the engine")
        self._inference = self._seconds("request_inference_time", "From the place in the engine to the last token")
        self._prefill = self._seconds("request_prefill_time", "From the place in the engine to the first token")
        self._decode = self._seconds("request_decode_time", "From the first token to the last")

    def first_token(self, seconds: float) -> None:
        """A request's first token came, `seconds` after the request."""
        self._first_token.observe(seconds)

    def prompt(self, tokens: int, cached: int) -> None:
        """The prompt of a choice was read, `cached` of its tokens from the prefix cache."""
        self._queries.inc(tokens)
        self._old_queries.inc(tokens)
        self._prompt.inc(tokens)
        self._prompt_size.observe(tokens)
        self._hits.inc(cached)
        self._old_hits.inc(cached)
        self._cached.inc(cached)
        self._device.inc(cached)
        self._by_source["local_cache_hit"].inc(cached)
        self._by_source["local_compute"].inc(tokens - cached)
        self._computed.observe(tokens - cached)

    def ended(self, record: GenerationRecord) -> None:
        """A request has ended; its times count if it was completed."""
        for reason in record.finish_reasons:
            left = "abort" if record.outcome == "cancelled" else "error"
            self._success[reason if record.outcome == "completed" and reason else left].inc()
        if record.outcome == "completed" and record.first_token and record.last_token and record.ended:
            self._count_completed(record, record.first_token, record.last_token, record.ended)

    def _count_completed(self, record: GenerationRecord, first: float, last: float, ended: float) -> None:
        for generated in record.generated:
            self._answer_size.observe(generated)
        self._longest.observe(max(record.generated))
        self._n.observe(len(record.generated))
        self._max_tokens.observe(record.max_tokens)
        self._whole.observe(ended - record.arrived)
        self._decode.observe(last - first)
        if record.completion_tokens > 1:
            self._per_token.observe((last - first) / (record.completion_tokens - 1))
        if record.placed is not None:
            self._queue.observe(record.placed - record.arrived)
            self._prefill.observe(first - record.placed)
            self._inference.observe(last - record.placed)

    def _labelled(self, name: str, text: str, label: str) -> Counter:
        return Counter(f"vllm:{name}", text, (*LABELS, label), registry=self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"vllm:{name}", text, LABELS, registry=self._registry).labels(*self._values)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"vllm:{name}", text, LABELS, registry=self._registry, buckets=buckets).labels(*self._values)

    def _seconds(self, name: str, text: str, buckets: Sequence[float] = REQUEST_SECONDS) -> Histogram:
        return self._histogram(f"{name}_seconds", text, buckets)


class TokenClock(Collector):
    """Generated tokens and the times between them: plain numbers, since this is counted for every token."""

    def __init__(self, values: Sequence[str]) -> None:
        self._values = values
        self._generated = 0
        self._counts = [0] * (len(TOKEN_SECONDS) + 1)
        self._sum = 0.0

    def first(self, tokens: int) -> None:
        """The first tokens of a choice came."""
        self._generated += tokens

    def more(self, tokens: int, seconds: float) -> None:
        """`tokens` more came, at once, `seconds` after those before: each after its share of them."""
        self._generated += tokens
        self._sum += seconds
        if seconds <= TOKEN_SECONDS[0] * tokens:  # most of them
            self._counts[0] += tokens
        else:
            self._counts[bisect_left(TOKEN_SECONDS, seconds / tokens)] += tokens

    def collect(self) -> Iterable[Metric]:
        """A counter and a histogram."""
        generated = CounterMetricFamily("vllm:generation_tokens", "Generated tokens", labels=LABELS)
        generated.add_metric(self._values, self._generated)
        yield generated
        between = _histogram(
            "inter_token_latency_seconds", "Between a choice's tokens; those that come at once share it"
        )
        between.add_metric(self._values, _cumulated(TOKEN_SECONDS, self._counts), self._sum)
        yield between


class AdapterRequests(Collector):
    """Which LoRA adapters requests run with and wait for; the value is the time at which that is told, as in vLLM.

    `most`: how many may be in one batch; 0 without adapters, where vLLM has nothing of this.
    """

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._requests: dict[str, GenerationRecord] = {}

    def begin(self, record: GenerationRecord) -> None:
        """A request is under way."""
        if record.adapter:
            self._requests[record.response_id] = record

    def end(self, record: GenerationRecord) -> None:
        """It has ended."""
        self._requests.pop(record.response_id, None)

    def collect(self) -> Iterable[Metric]:
        """One gauge, if there may be adapters."""
        if not (most := self._most()):
            return
        records = list(self._requests.values())
        family = GaugeMetricFamily(
            "vllm:lora_requests_info", "The adapters of requests that run and wait", labels=ADAPTER_LABELS
        )
        waiting, running = (
            ",".join(dict.fromkeys(one.adapter for one in records if (one.placed is None) is waits))
            for waits in (True, False)
        )
        family.add_metric([str(most), waiting, running], time())
        yield family


class EngineMetrics(Collector):
    """What the engines last reported; what waits here for a place is told with the first of them."""

    def __init__(self, engine: EngineView) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """Gauges, and what the engines have counted since their starts."""
        serves = GaugeMetricFamily("twogear_replica_ready", "Whether an engine takes requests", labels=["engine"])
        running = _gauge("num_requests_running", "Generations that the engine runs")
        waiting = _gauge("num_requests_waiting", "Generations that wait for a place in the engine")
        reasons = GaugeMetricFamily(
            "vllm:num_requests_waiting_by_reason", "The same by why they wait", labels=(*LABELS, "reason")
        )
        usage = _gauge("kv_cache_usage_perc", "Share of the KV cache's pages that requests hold, 1 is full")
        old_usage = _gauge("gpu_cache_usage_perc", "An old name of vllm:kv_cache_usage_perc")
        preempted = CounterMetricFamily(
            "vllm:num_preemptions", "Generations that the engine put back for want of pages", labels=LABELS
        )
        steps = _histogram("iteration_tokens_total", "Tokens of a step of the engine, or of a round of several")
        queued = self._engine.queued()
        for number, (is_ready, load) in enumerate(self._engine.replicas()):
            values = (self._engine.model_name, str(number))
            serves.add_metric([str(number)], int(is_ready))
            running.add_metric(values, load.running)
            waiting.add_metric(values, load.waiting + queued)
            reasons.add_metric((*values, "capacity"), load.waiting + queued)
            reasons.add_metric((*values, "deferred"), 0)
            usage.add_metric(values, _usage(load.page_groups))
            old_usage.add_metric(values, _usage(load.page_groups))
            preempted.add_metric(values, load.preemptions)
            counts = load.step_tokens or [0] * (len(STEP_TOKENS) + 1)
            steps.add_metric(values, _cumulated(STEP_TOKENS, counts), load.step_tokens_sum)
            queued = 0
        yield from (serves, running, waiting, reasons, usage, old_usage, preempted, steps, self._cache_config())

    def _cache_config(self) -> Metric:
        """Labels of a constant, as in vLLM."""
        config = {**self._engine.cache_config(), "engine": ENGINE}
        family = GaugeMetricFamily("vllm:cache_config_info", "The engine's cache configuration", labels=list(config))
        if len(config) > 1:
            family.add_metric(list(config.values()), 1)
        return family


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"vllm:{name}", text, labels=LABELS)


def _histogram(name: str, text: str) -> HistogramMetricFamily:
    return HistogramMetricFamily(f"vllm:{name}", text, labels=LABELS)


def _cumulated(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Prometheus's buckets. `counts`: how many were up to each bound and above the one before, the last above all."""
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(counts), strict=True))


def _usage(groups: Sequence[PageGroup]) -> float:
    """All groups take their pages from one pool, so that each says the same of what is free."""
    used = sum(group.used for group in groups)
    pool = used + sum(group.cached for group in groups) + max((group.free for group in groups), default=0)
    return used / pool if pool else 0.0

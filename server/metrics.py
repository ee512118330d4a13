"""The front end's Prometheus metrics under the contract's names; those under vLLM's are `telemetry.vllm_metrics`'."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.errors import ApiError
from server.telemetry.record import GenerationRecord, Outcome, RequestRecord
from server.telemetry.vllm_metrics import EngineMetrics, EngineView, VllmMetrics

UNKNOWN_MODE = "unknown"  # of requests that were rejected before their mode was known
KINDS = ("prompt", "cached", "reasoning", "answer", "draft", "trial")
REASONING_FINISHES = ("natural", "budget", "repetition", "confident", "length", "stopped")
NO_ROUTE = "none"  # of requests for what is not here; vLLM's word

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class Counted(Protocol):
    """What is counted of a choice under way; `server.core.choice` has the rest."""

    @property
    def cached_tokens(self) -> int | None:
        """How many of its prompt's tokens were found in the prefix cache; None before its first token."""

    @property
    def completion_tokens(self) -> int:
        """How many tokens it has generated."""


class Metrics:
    """All metrics of one app, in a registry of their own. Those of `modes` are there from the start, at zero: a rate
    over the first failure needs the zero before it.
    """

    def __init__(self, engine: EngineView, modes: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests by how they ended", "mode", "outcome")
        self._tokens = self._counter("tokens", "Tokens by kind", "mode", "kind")
        self._reasoning_finish = self._counter("reasoning_finish", "How thinking ended", "how")
        self._first_token = self._seconds("time_to_first_token", "Until the first token")
        self._first_answer_token = self._seconds("time_to_first_answer_token", "Until the first token of the answer")
        self._per_token = self._seconds("time_per_output_token", "Between tokens, mean of a request", TOKEN_SECONDS)
        self._request = self._seconds("request", "Whole requests")
        self.overloads = self._counter("requests_rejected", "Requests refused for the server's load", "reason")
        self._running = self._gauge("requests_running", "Requests that have or had a place in the engine")
        self._waiting = self._gauge("requests_waiting", "Requests that wait for their first place in the engine")
        self.registry.register(_Engine(engine))
        self.vllm = VllmMetrics(self.registry, engine)
        self.registry.register(EngineMetrics(engine))
        self._http = Counter(
            "http_requests",
            "Responses by route and kind of status",
            ("handler", "method", "status"),
            registry=self.registry,
        )
        self._modes: dict[str, ModeMetrics] = {}
        self.reasoning_finish = {how: self._reasoning_finish.labels(how) for how in REASONING_FINISHES}
        for mode in modes:
            self.of(mode)
        for outcome in get_args(Outcome):
            self._requests.labels(UNKNOWN_MODE, outcome)

    def of(self, mode: str) -> "ModeMetrics":
        """Those of one mode; to look them up by their labels costs a request as much as to count with them."""
        known = self._modes.get(mode)
        if known is None:
            known = self._modes[mode] = ModeMetrics(
                requests={outcome: self._requests.labels(mode, outcome) for outcome in get_args(Outcome)},
                tokens=[self._tokens.labels(mode, kind) for kind in KINDS],
                first_token=self._first_token.labels(mode),
                first_answer_token=self._first_answer_token.labels(mode),
                per_token=self._per_token.labels(mode),
                request=self._request.labels(mode),
                running=self._running.labels(mode),
                waiting=self._waiting.labels(mode),
            )
        return known

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def refused(self, outcome: Outcome, mode: str = UNKNOWN_MODE) -> None:
        """Counts a request that never reached the engine."""
        self._requests.labels(mode, outcome).inc()

    def responded(self, record: RequestRecord) -> None:
        """Counts a response; vLLM has the same, by a library."""
        status = "none" if record.status is None else f"{record.status // 100}xx"
        self._http.labels(record.route or NO_ROUTE, record.method, status).inc()

    @contextmanager
    def watch(self, record: GenerationRecord) -> Iterator["RequestWatch"]:
        """Times what is generated for a request, from its arrival to the end of the block, and notes its error."""
        watch = RequestWatch(self, record)
        try:
            yield watch
        except ApiError as error:
            record.error = error
            raise
        finally:
            watch.close()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"twogear_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"twogear_{name}", text, ["mode"], registry=self.registry)

    def _seconds(self, name: str, text: str, buckets: Sequence[float] = SECONDS) -> Histogram:
        return Histogram(f"twogear_{name}_seconds", text, ["mode"], buckets=buckets, registry=self.registry)


@dataclass(frozen=True, kw_only=True)
class ModeMetrics:
    """Those with a label for the mode, of one mode. `requests` are by outcome, `tokens` as KINDS are."""

    requests: dict[Outcome, Counter]
    tokens: list[Counter]
    first_token: Histogram
    first_answer_token: Histogram
    per_token: Histogram
    request: Histogram
    running: Gauge
    waiting: Gauge


class RequestWatch:
    """The clock of one request; it writes into the request's record.

    `outcome` stays "failed" unless the request is told to have ended otherwise.
    """

    def __init__(self, metrics: Metrics, record: GenerationRecord) -> None:
        self.outcome: Outcome = "failed"
        self._metrics = metrics
        self._mode = metrics.of(record.mode)
        self._record = record
        self._generated = record.generated
        self._times: list[float | None] = [None] * len(record.generated)  # of each choice's last token
        self._more = metrics.vllm.tokens.more
        self._mode.waiting.inc()
        metrics.vllm.adapters.begin(record)

    def start(self) -> None:
        """The request has its first place in the engine."""
        self._record.placed = perf_counter()
        self._mode.waiting.dec()
        self._mode.running.inc()

    def advance(self, index: int, choice: Counted, *, answering: bool) -> None:
        """Choice `index` has come further; `answering` once one of its tokens belongs to the answer.

        Called for every token: what it does with most of them is written to be cheap.
        """
        record = self._record
        record.last_token = now = perf_counter()
        generated = choice.completion_tokens
        more = generated - self._generated[index]
        if more:
            self._generated[index] = generated
            before = self._times[index]
            self._times[index] = now
            if before is None:
                self._begin_choice(index, choice, now)
            else:
                self._more(more, now - before)
        elif record.first_token is None:
            self._begin(now)
        if answering and record.first_answer_token is None:
            record.first_answer_token = now
            self._mode.first_answer_token.observe(now - record.arrived)

    def close(self) -> None:
        """Ends the request's time, and counts what the record says."""
        metrics, record, mode = self._metrics, self._record, self._mode
        record.ended, record.outcome = perf_counter(), self.outcome
        metrics.vllm.adapters.end(record)
        (mode.waiting if record.placed is None else mode.running).dec()
        if record.first_token is not None and record.last_token is not None and record.completion_tokens > 1:
            between = (record.last_token - record.first_token) / (record.completion_tokens - 1)
            mode.per_token.observe(between)
        mode.request.observe(record.ended - record.arrived)
        mode.requests[record.outcome].inc()
        self._count_tokens()
        metrics.vllm.ended(record)

    def _begin_choice(self, index: int, choice: Counted, now: float) -> None:
        vllm = self._metrics.vllm
        vllm.tokens.first(choice.completion_tokens)
        vllm.prompt(self._record.prompts[index], choice.cached_tokens or 0)
        if self._record.first_token is None:
            self._begin(now)

    def _begin(self, now: float) -> None:
        record = self._record
        record.first_token = now
        self._mode.first_token.observe(now - record.arrived)
        self._metrics.vllm.first_token(now - record.arrived)

    def _count_tokens(self) -> None:
        record = self._record
        answer = record.completion_tokens - record.reasoning_tokens
        beside = record.draft_tokens, record.trial_tokens
        counts = (record.prompt_tokens, record.cached_tokens, record.reasoning_tokens, answer, *beside)
        for counter, number in zip(self._mode.tokens, counts, strict=True):
            counter.inc(number)
        for how in record.reasoning_finish_reasons:
            if how is not None:
                self._metrics.reasoning_finish[how].inc()


class _Engine(Collector):
    """Whether requests are taken, the engine's pages by group, and what one holds."""

    def __init__(self, engine: EngineView) -> None:
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        """Gauges, those of the pages with a sample for each group."""
        yield GaugeMetricFamily(
            "twogear_ready", "Whether requests are taken, as /health says", int(self._engine.ready())
        )
        pages = GaugeMetricFamily("twogear_kv_pages", "KV cache pages of the engine", labels=["group", "state"])
        sizes = GaugeMetricFamily("twogear_kv_page_tokens", "Tokens that one KV cache page holds", labels=["group"])
        for group in self._engine.load().page_groups:
            pages.add_metric([group.group, "used"], group.used)
            pages.add_metric([group.group, "cached"], group.cached)
            pages.add_metric([group.group, "free"], group.free)
            sizes.add_metric([group.group], group.page_size)
        yield from (pages, sizes)

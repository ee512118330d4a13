"""OpenTelemetry traces: a span for each request and one for each of its phases, made at the request's end.

So a token costs nothing, and nothing of OpenTelemetry is imported where no endpoint is named. The attributes have the
names of OpenTelemetry's semantic conventions for generative AI (1.37) and HTTP; what those do not know is `twogear.*`.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from prometheus_client.registry import Collector

from server.cli_errors import UsageError
from server.errors import ApiError
from server.telemetry.record import GenerationRecord, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger("twogear.traces")
FLUSH_MILLISECONDS = 2000
"""For spans that are still here when the server ends."""
PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
HTTP = "http/protobuf"

Value = str | bool | int | float | Sequence[str]
Attributes = Mapping[str, Value]


class Phase(NamedTuple):
    """A part of a request's time, on the clock of perf_counter."""

    name: str
    start: float
    end: float


class Traces:
    """Makes spans of requests that have ended. `model`: the name under which it is served."""

    collectors: Sequence[Collector] = ()

    def __init__(self, provider: "TracerProvider", model: str) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - only where traces were asked for
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

        self._provider = provider
        self._tracer = provider.get_tracer("twogear", version("twogear"))
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace
        self._model = model

    def write(self, record: RequestRecord) -> None:
        """The spans of a request; probes have none. Notes the trace's id in the record."""
        if record.is_probe or record.ended is None:
            return
        trace, start, model = self._trace, record.started, record.model or self._model
        context = self._propagator.extract(record.trace)
        span = self._tracer.start_span(
            _span_name(record, model),
            context,
            trace.SpanKind.SERVER,
            attributes=_attributes(record, model),
            start_time=start,
        )
        record.trace_id = trace.format_trace_id(span.get_span_context().trace_id)
        if record.outcome == "failed":
            span.set_status(trace.Status(trace.StatusCode.ERROR))
        inner = trace.set_span_in_context(span, context)
        for phase in phases(record.generation):
            part = self._tracer.start_span(
                phase.name, inner, start_time=start + _nanoseconds(phase.start - record.arrived)
            )
            part.end(start + _nanoseconds(phase.end - record.arrived))
        span.end(start + _nanoseconds(record.ended - record.arrived))

    def close(self) -> None:
        """Sends what is left; takes at most FLUSH_MILLISECONDS, and what the exporter takes to give up."""
        self.flush()
        self._provider.shutdown()

    def flush(self) -> None:
        """Sends what there is, or gives it up."""
        self._provider.force_flush(FLUSH_MILLISECONDS)


def open_traces(endpoint: str, model: str) -> Traces:
    """Traces that go to an OTLP endpoint over HTTP; raises UsageError."""
    address = _address(endpoint)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            "--otlp-traces-endpoint needs OpenTelemetry, which is not installed: pip install 'twogear[otel]'"
        ) from error
    return Traces(_provider(_told_once(OTLPSpanExporter(address), endpoint)), model)


def phases(generation: GenerationRecord | None) -> Iterator[Phase]:
    """Queue, prefill, thinking and answer, as far as the request came; of several choices the first to get there."""
    if generation is None:
        return
    last = generation.last_token
    end = generation.ended if last is None else last
    assert end is not None
    placed = generation.placed
    yield Phase("queue", generation.arrived, end if placed is None else placed)
    if placed is None:
        return
    first, answer = generation.first_token, generation.first_answer_token
    yield Phase("prefill", placed, end if first is None else first)
    if first is None:
        return
    if generation.reasoning_tokens:
        yield Phase("thinking", first, end if answer is None else answer)
        first = answer
    if first is not None:
        yield Phase("answer", first, end)


def _told_once(exporter: "SpanExporter", endpoint: str) -> "SpanExporter":
    """The same exporter, whose failures are a line in the log when they begin and one when they are over.

    Its own lines, several for each batch of spans, are not shown.
    """
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult  # noqa: PLC0415

    logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
    logging.getLogger("opentelemetry.exporter.http").setLevel(logging.CRITICAL)

    class ToldOnce(SpanExporter):
        lost = 0

        def export(self, spans: Sequence["ReadableSpan"]) -> SpanExportResult:
            result = exporter.export(spans)
            if result is SpanExportResult.FAILURE:
                if not self.lost:
                    logger.error("Traces cannot be sent to %s; requests are answered, and lack their traces.", endpoint)
                self.lost += len(spans)
            elif self.lost:
                logger.warning("Traces are sent again; %d spans were lost.", self.lost)
                self.lost = 0
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = FLUSH_MILLISECONDS) -> bool:
            return exporter.force_flush(timeout_millis)

    return ToldOnce()


def _provider(exporter: "SpanExporter") -> "TracerProvider":
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    name = os.environ.get("OTEL_SERVICE_NAME", "twogear")
    resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: version("twogear")})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _address(endpoint: str) -> str:
    """With OTLP's own path where it has none; raises UsageError."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(
            f"--otlp-traces-endpoint must be a URL such as http://127.0.0.1:4318/v1/traces, not {endpoint!r}"
        )
    if os.environ.get(PROTOCOL, HTTP) != HTTP:
        raise UsageError(f"{PROTOCOL} is {os.environ[PROTOCOL]!r}: traces are sent with {HTTP!r} only")
    return endpoint if parts.path.strip("/") else parts._replace(path="/v1/traces").geturl()


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _span_name(record: RequestRecord, model: str) -> str:
    generation = record.generation
    return f"{record.method} {record.route or ''}".strip() if generation is None else f"{generation.operation} {model}"


def _attributes(record: RequestRecord, model: str) -> Attributes:
    several = record.n is not None and record.n > 1
    told: dict[str, Value | None] = {
        "http.request.method": record.method,
        "http.route": record.route,
        "http.response.status_code": record.status,
        "url.path": record.path,
        "error.type": _error_type(record),
        "twogear.request_id": record.id,
        "twogear.client": record.client or None,
        "twogear.mode": record.mode,
        "twogear.outcome": record.outcome,
        "gen_ai.request.model": None if record.mode is None else model,
        "gen_ai.request.stream": record.streamed,
        "gen_ai.request.choice.count": record.n if several else None,
    }
    if record.generation is not None:
        told |= _generated(record.generation, model)
    return {name: value for name, value in told.items() if value is not None}


def _generated(generation: GenerationRecord, model: str) -> dict[str, Value | None]:
    thinking = [how for how in generation.reasoning_finish_reasons if how is not None]
    first = generation.first_token
    return {
        "gen_ai.operation.name": generation.operation,
        "gen_ai.provider.name": "twogear",
        "gen_ai.request.max_tokens": generation.max_tokens,
        "gen_ai.response.id": generation.response_id,
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": [how for how in generation.finish_reasons if how is not None],
        "gen_ai.response.time_to_first_chunk": None if first is None else first - generation.arrived,
        "gen_ai.usage.input_tokens": generation.prompt_tokens,
        "gen_ai.usage.output_tokens": generation.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": generation.cached_tokens,
        "gen_ai.usage.reasoning.output_tokens": generation.reasoning_tokens,
        "twogear.reasoning_finish_reasons": thinking or None,
    }


def _error_type(record: RequestRecord) -> str | None:
    if isinstance(record.failure, ApiError):
        return record.failure.code or record.failure.kind
    if record.failure is not None:
        return type(record.failure).__name__
    return str(record.status) if record.outcome in ("failed", "rejected") and record.status is not None else None

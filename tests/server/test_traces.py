"""OpenTelemetry traces: one span for each request and its phases, in the caller's trace, to a real receiver too."""

import asyncio
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import ClassVar

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes, http_attributes, url_attributes
from opentelemetry.trace import SpanKind, StatusCode

from chat_templates.format import ChatFormat
from server.app import create_app
from server.cli import main
from server.modes.profile import Profile
from server.settings import EMBEDDED_MODEL, Settings
from server.telemetry.observers import Observer
from server.telemetry.record import GenerationRecord
from server.telemetry.traces import PROTOCOL, Traces, open_traces, phases
from tests.fake_engine import FakeEngine
from tests.server.conftest import MODEL, body

CHAT = "/v1/chat/completions"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACED = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"}


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    """Thinks where thinking is open, and answers; a millisecond for each token."""
    answer = [*fmt.encode_text("forty"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("let me see"), *fmt.close_thinking()]
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer),
        (fmt.end_of_turn_id,),
        step=lambda: asyncio.sleep(0.001),
    )


@asynccontextmanager
async def connect(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, *observers: Observer
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, Settings(), profile, fmt, observers=observers)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        yield http


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Iterator[Traces]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces = Traces(provider, MODEL)
    yield traces
    traces.close()


def by_name(spans: tuple[ReadableSpan, ...]) -> dict[str, ReadableSpan]:
    found = {span.name: span for span in spans}
    assert len(found) == len(spans)
    return found


async def test_the_phases_of_a_request_that_thinks(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, traces: Traces, exporter: InMemorySpanExporter
) -> None:
    async with connect(engine, profile, fmt, traces) as http:
        headers = {**TRACED, "X-Request-Id": "mine"}
        response = await http.post(CHAT, json=body(reasoning_mode="reasoning", stream=True), headers=headers)
    spans = by_name(exporter.get_finished_spans())
    root = spans.pop(f"chat {MODEL}")
    assert root.kind is SpanKind.SERVER
    assert root.parent is not None
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, PARENT)
    assert list(spans) == ["queue", "prefill", "thinking", "answer"]
    moments = [root.start_time]
    for span in spans.values():
        assert span.parent is not None
        assert span.parent.span_id == root.context.span_id
        moments += [span.start_time, span.end_time]
    moments.append(root.end_time)
    assert None not in moments
    assert moments == sorted(moments, key=lambda moment: moment or 0)
    thinking = spans["thinking"]
    assert (thinking.end_time or 0) - (thinking.start_time or 0) > 1e6 * len(fmt.encode_text("let me see"))
    told = dict(root.attributes or {})
    assert told.pop("gen_ai.response.time_to_first_chunk")
    assert str(told.pop("gen_ai.response.id")) in response.text
    reasoning = len(fmt.encode_text("let me see")) + 1
    prompt = len(engine.seen[0].prompt_ids)
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "twogear",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 4096 - prompt,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": reasoning + len(fmt.encode_text("forty")) + len(fmt.close_thinking()),
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": reasoning,
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "url.path": CHAT,
        "twogear.request_id": "mine",
        "twogear.mode": "reasoning",
        "twogear.outcome": "completed",
        "twogear.reasoning_finish_reasons": ("natural",),
    }
    conventions = {
        value
        for module in (gen_ai_attributes, http_attributes, url_attributes, error_attributes)
        for name, value in vars(module).items()
        if name.isupper()
    }
    assert not {name for name in told if not name.startswith("twogear.")} - conventions


async def test_other_requests(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, traces: Traces, exporter: InMemorySpanExporter
) -> None:
    async with connect(engine, profile, fmt, traces) as http:
        await http.post(CHAT, json=body())
        await http.post("/v1/completions", json={"prompt": "a", "n": 2, "temperature": 1})
        await http.post(CHAT, json=body(reasoning_mode="deep"))
        engine.fail_after = 1
        await http.post(CHAT, json=body())
        await http.get("/v1/models")
        await http.get("/health")
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans if span.kind is SpanKind.SERVER] == [
        *(f"chat {MODEL}", f"text_completion {MODEL}", f"POST {CHAT}", f"chat {MODEL}", "GET /v1/models"),
    ]
    direct, completion, refused, failed, _ = (span for span in spans if span.kind is SpanKind.SERVER)
    inner = [span.name for span in spans if span.parent and span.parent.span_id == direct.context.span_id]
    assert inner == ["queue", "prefill", "answer"]
    assert (completion.attributes or {})["gen_ai.request.choice.count"] == 2
    assert (refused.attributes or {})["error.type"] == "invalid_request_error"
    assert [span.status.status_code for span in (refused, failed)] == [StatusCode.UNSET, StatusCode.ERROR]


async def test_a_caller_that_does_not_sample_is_not_sampled(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, traces: Traces, exporter: InMemorySpanExporter
) -> None:
    async with connect(engine, profile, fmt, traces) as http:
        await http.post(CHAT, json=body(), headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
        assert not exporter.get_finished_spans()
        await http.post(CHAT, json=body(), headers={"traceparent": "nonsense"})
    assert exporter.get_finished_spans()


@pytest.mark.parametrize(
    ("reached", "names"),
    [
        ({}, ["queue"]),
        ({"placed": 1.0}, ["queue", "prefill"]),
        ({"placed": 1.0, "first_token": 2.0, "last_token": 3.0}, ["queue", "prefill", "answer"]),
        (
            {"placed": 1.0, "first_token": 2.0, "last_token": 3.0, "reasoning_tokens": 5},
            ["queue", "prefill", "thinking"],
        ),
    ],
)
def test_a_request_that_ends_early_has_the_phases_that_it_reached(reached: dict[str, float], names: list[str]) -> None:
    record = GenerationRecord(response_id="", mode="", arrived=0.0, ended=4.0, **reached)  # type: ignore[arg-type]
    found = list(phases(record))
    assert [phase.name for phase in found] == names
    assert all(before.end == after.start for before, after in pairwise(found))
    assert found[-1].end == reached.get("last_token", 4.0)


class Receiver(BaseHTTPRequestHandler):
    """An OTLP receiver."""

    got: ClassVar[list[tuple[str, ExportTraceServiceRequest]]] = []

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.got.append((self.path, ExportTraceServiceRequest.FromString(content)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


@pytest.fixture
def receiver() -> Iterator[str]:
    Receiver.got.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


async def test_a_receiver_that_is_not_there_holds_up_nobody_and_is_told_once(
    engine: FakeEngine,
    profile: Profile,
    fmt: ChatFormat,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")  # seconds for one batch, with all tries
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        traces = open_traces(f"http://127.0.0.1:{unused.getsockname()[1]}", MODEL)
        async with connect(engine, profile, fmt, traces) as http:
            for _ in range(3):
                assert (await http.post(CHAT, json=body())).status_code == 200
                await asyncio.to_thread(traces.flush)
        await asyncio.to_thread(traces.close)
    (told,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert told.getMessage().startswith("Traces cannot be sent to http://127.0.0.1:")


async def test_a_receiver_gets_them(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, receiver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gear")
    traces = open_traces(receiver, MODEL)
    async with connect(engine, profile, fmt, traces) as http:
        await http.post(CHAT, json=body(), headers=TRACED)
    traces.close()
    ((path, request),) = Receiver.got
    assert path == "/v1/traces"
    (resource,) = request.resource_spans
    names = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert names["service.name"] == "gear"
    (scope,) = resource.scope_spans
    assert {span.name for span in scope.spans} == {"queue", "prefill", "answer", f"chat {MODEL}"}
    assert {span.trace_id.hex() for span in scope.spans} == {TRACE}


@pytest.mark.parametrize(
    ("endpoint", "protocol", "told"),
    [
        ("localhost:4317", "http/protobuf", "must be a URL such as"),
        ("grpc://a:4317", "http/protobuf", "must be a URL such as"),
        ("http://a:4317", "grpc", f"{PROTOCOL} is 'grpc'"),
    ],
)
def test_mistakes_are_one_line(
    endpoint: str, protocol: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROTOCOL, protocol)
    assert main(["serve", str(EMBEDDED_MODEL), "--otlp-traces-endpoint", endpoint]) == 2
    assert told in capsys.readouterr().err


def test_without_the_packages_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter", None)
    assert main(["serve", str(EMBEDDED_MODEL), "--otlp-traces-endpoint", "http://127.0.0.1:1"]) == 2
    assert "pip install 'twogear[otel]'" in capsys.readouterr().err


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = "import sys, server.launch; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

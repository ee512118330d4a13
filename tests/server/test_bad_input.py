"""Every wrong request gets a 4xx in the contract's shape, and other requests go on."""

import asyncio
import gzip
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT
from server.api.chat import routes
from server.api.chat.body import ChatRequest
from server.api.common.fields import Fields
from server.api.completions.body import CompletionRequest
from server.api.tokens.body import DetokenizeRequest, TokenizeTextRequest
from server.core.grammar_pool import POOL
from server.modes.profile import Profile
from server.offload import LONG
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, MODEL, Client, always, body, served
from tests.server.test_http import error_of
from tests.server.test_streaming import events_of

CHAT, TEXT, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"
LIMIT = Settings().max_body_bytes
VALID: dict[str, dict[str, Any]] = {
    CHAT: body(),
    TEXT: {"prompt": "Once", "max_tokens": 2},
    TOKENIZE: {"prompt": "Once"},
    DETOKENIZE: {"tokens": [5]},
}
BODIES: dict[str, type[Fields]] = {
    CHAT: ChatRequest, TEXT: CompletionRequest, TOKENIZE: TokenizeTextRequest, DETOKENIZE: DetokenizeRequest,
}  # fmt: skip


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("ab"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


def refused(response: httpx.Response, param: str | None = None, status: int = 400) -> str:
    """The message of an error, whose shape, status and field are checked."""
    error = error_of(response)
    assert (response.status_code, error["param"]) == (status, param), error
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]
    return str(error["message"])


WRONG: list[Any] = [
    True, 0, -1, 1, 2, 10_000, 2**31, 2**63, -(2**63) - 1, 0.5, -0.5, 1e300, "", "x", "\0", [], {}, [1], ["x"], [[]],
    [None], {"x": 1}, {"type": "x"}, {"type": None}, {"effort": 1}, {"json": 1}, {"include_usage": 1}, {"5": "x"},
]  # fmt: skip


@pytest.mark.parametrize("path", BODIES)
async def test_a_value_that_the_schema_forbids_is_refused_and_named(
    client: Client, engine: FakeEngine, path: str
) -> None:
    """Every field with every kind of value; what the schema allows may still contradict another field."""
    async with client(engine) as http:
        document = (await http.get("/openapi.json")).json()
        kind = BODIES[path]
        for name in kind.model_fields:
            schema = {**document, "$ref": f"#/components/schemas/{kind.__name__}/properties/{name}"}
            allowed = jsonschema_rs.validator_for(schema).is_valid
            for value in WRONG:
                response = await http.post(path, json={**VALID[path], name: value})
                if not allowed(value):
                    error = error_of(response)
                    assert (response.status_code, error["type"]) == (400, "invalid_request_error"), (name, value)
                    assert error["param"].startswith(name), (name, value, error)
                else:
                    assert response.status_code in (200, 400, 404), (name, value, response.text)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def message(role: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, **fields}]}


def called(**function: Any) -> dict[str, Any]:
    return message("assistant", tool_calls=[{**CALL, "function": {"name": "f", **function}}])


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, message("user", content=[{"type": "text", "text": "a"}, IMAGE]), "messages[0].content[1].type"),
        (CHAT, message("user", content=[AUDIO]), "messages[0].content[0].type"),
        (CHAT, message("user", content=[{"type": "file", "file": {}}]), "messages[0].content[0].type"),
        (CHAT, message("user", content=None), "messages[0].content"),
        (CHAT, message("user", content={"type": "text"}), "messages[0].content"),
        (CHAT, message("user", content=["a"]), "messages[0].content[0]"),
        (CHAT, message("user", content=[{"type": "text"}]), "messages[0].content[0].text"),
        (CHAT, message("function", content="a"), "messages[0].role"),
        (CHAT, message("user", content="a", name=1), "messages[0].name"),
        (CHAT, message("tool", content="a", tool_call_id=1), "messages[0].tool_call_id"),
        (CHAT, message("user", content="a", tool_calls=[CALL]), "messages[0].tool_calls"),
        (CHAT, message("assistant", reasoning_content=1), "messages[0].reasoning_content"),
        (CHAT, message("assistant", tool_calls={}), "messages[0].tool_calls"),
        (CHAT, message("assistant", tool_calls=[{**CALL, "type": "custom"}]), "messages[0].tool_calls[0].custom"),
        (CHAT, called(arguments=nested(80)), "messages[0].tool_calls[0].function.arguments"),
        (CHAT, called(name=""), "messages[0].tool_calls[0].function.name"),
        (CHAT, {"messages": [*HELLO, {}]}, "messages[1].role"),
        (CHAT, {"messages": [*HELLO, 1]}, "messages[1]"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(80)}}]},
         "tools[0].function"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": 1}}]},
         "tools[0].function.parameters"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (CHAT, {"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}] * 257}, "tools"),
        (CHAT, {"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
        (CHAT, {"stop": ["a"] * 1000}, "stop"),
        (CHAT, {"stop": "a" * 1001}, "stop"),
        (CHAT, {"stop": ["a", ""]}, "stop[1]"),
        (CHAT, {"logit_bias": {str(n): 1 for n in range(100_000)}}, "logit_bias"),
        (CHAT, {"logit_bias": {"-5": 1}}, "logit_bias"),
        (CHAT, {"logit_bias": {"٣": 1}}, "logit_bias"),
        (CHAT, {"logit_bias": {"5": 1e300}}, "logit_bias.5"),
        (CHAT, {"stop_token_ids": [5] * 129}, "stop_token_ids"),
        (CHAT, {"stop_token_ids": [2**31]}, "stop_token_ids[0]"),
        (CHAT, {"seed": 2**63}, "seed"),
        (CHAT, {"seed": -(2**63) - 1}, "seed"),
        (CHAT, {"seed": 1e30}, "seed"),
        (CHAT, {"max_tokens": 2**63}, "max_tokens"),
        (CHAT, {"max_tokens": 131_073}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 131_073}, "max_completion_tokens"),
        (CHAT, {"n": 129}, "n"),
        (CHAT, {"reasoning": {"effort": "low", "max_tokens": 5}}, "reasoning.max_tokens"),
        (CHAT, {"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking.budget_tokens"),
        (CHAT, {"reasoning_mode": "standard", "reasoning_effort": "low"}, "reasoning_effort"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}},
         "response_format.json_schema.schema"),
        (CHAT, {"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        (CHAT, {"structured_outputs": {"json": "[" * 100_000}}, "structured_outputs.json"),
        (CHAT, {"structured_outputs": {"json": '{"a": NaN}'}}, "structured_outputs.json"),
        (CHAT, {"structured_outputs": {"choice": ["a"] * 5000}}, "structured_outputs.choice"),
        (CHAT, {"structured_outputs": {"regex": "(" * 100_000}}, "structured_outputs.regex"),
        (CHAT, {"structured_outputs": {"regex": "a" * 1_000_000}}, "structured_outputs.regex"),
        (CHAT, {"structured_outputs": {"grammar": "start: " + "x " * 50_000}}, "structured_outputs.grammar"),
        (CHAT, {"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs"),
        (CHAT, {"function_call": {"name": "f"}}, "function_call"),
        (CHAT, {"guided_json": {}}, "guided_json"),
        (TEXT, {"guided_regex": "a"}, "guided_regex"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": ""}, "prompt"),
        (TEXT, {"prompt": ["a", ""]}, "prompt"),
        (TEXT, {"prompt": ["a", 5]}, "prompt[1]"),
        (TEXT, {"prompt": [[5], [5.5]]}, "prompt[1][0]"),
        (TEXT, {"prompt": [[]]}, "prompt[0]"),
        (TEXT, {"prompt": ["a"] * 257}, "prompt"),
        (TEXT, {"prompt": [1_000_000]}, "prompt"),
        (TEXT, {"prompt": ["a"] * 256, "n": 128}, "n"),
        (TEXT, {"suffix": "end"}, "suffix"),
        (TEXT, {"best_of": 3}, "best_of"),
        (TEXT, {"max_tokens": 0}, "max_tokens"),
        (TEXT, {"reasoning_mode": "reasoning"}, "reasoning_mode"),
        (TEXT, {"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        (TEXT, {"structured_outputs": {"regex": "a"}, "min_tokens": 1}, "min_tokens"),
        (TOKENIZE, {"prompt": None}, "prompt"),
        (TOKENIZE, {"messages": HELLO}, "messages"),
        (DETOKENIZE, {"tokens": [1_000_000]}, "tokens"),
        (DETOKENIZE, {"tokens": [5] * 100_000 + ["x"]}, "tokens[100000]"),
        (f"{CHAT}/x/control", {"action": "stop"}, "action"),
    ],
)  # fmt: skip
async def test_a_field_at_fault_is_named(
    client: Client, engine: FakeEngine, path: str, fields: dict[str, Any], param: str
) -> None:
    async with client(engine) as http:
        refused(await http.post(path, json={**VALID.get(path, {}), **fields}), param)
    assert not engine.seen


DEEP = b'{"messages": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}"


@pytest.mark.parametrize(
    ("content", "param", "told"),
    [
        (b"", None, "JSON"),
        (b"{", None, "JSON"),
        (b"null", None, "object"),
        (b"[1]", None, "object"),
        (b'{"temperature": NaN}', None, "JSON"),
        (b'{"temperature": Infinity}', None, "JSON"),
        (b'{"temperature": 1e400}', None, "infinity"),
        (b'{"seed": ' + b"9" * 5000 + b"}", None, "infinity"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', None, "UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\xed\xa0\x80"}]}', None, "UTF-8"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None, "surrogate"),
        (b'{"messages": [{"role": "user", "content": "a\nb"}]}', None, "control character"),
        (b'\xef\xbb\xbf{"messages": []}', None, "JSON"),
        ('{"messages": []}'.encode("utf-16"), None, "JSON"),
        (b'{"messages": [], }', None, "JSON"),
        (b'{"messages": []} x', None, "JSON"),
        (DEEP, None, "depth"),
        (b"[" * 100_000, None, "depth"),
        (b"[" * 1_000_000, None, "lists"),
        (b'{"reasoning_mode": "standard", "reasoning_mode": "reasoning"}', "reasoning_mode", "twice"),
        (b'{"messages": [], "n": 1, "n": 1}', "n", "twice"),
    ],
)
async def test_what_is_no_json_object_is_told_why(
    client: Client, engine: FakeEngine, content: bytes, param: str | None, told: str
) -> None:
    async with client(engine) as http:
        for path in (CHAT, *VALID):
            if path == CHAT or param is None:
                assert told in refused(await http.post(path, content=content), param)


async def test_a_field_within_a_text_or_another_object_is_not_there_twice(client: Client, engine: FakeEngine) -> None:
    fields = {
        "max_tokens": 9,
        "reasoning": {"max_tokens": 5},
        "messages": [{"role": "user", "content": '"max_tokens"'}],
    }
    async with client(engine) as http:
        assert (await http.post(CHAT, json=body(**fields))).status_code == 200


async def test_other_content_types_are_refused(client: Client, engine: FakeEngine) -> None:
    content = json.dumps(body())
    async with client(engine) as http:
        for kind in ("text/plain", "multipart/form-data; boundary=a", "json", ""):
            response = await http.post(CHAT, content=content, headers={"Content-Type": kind})
            assert "application/json" in refused(response, status=415)
        curls = "application/x-www-form-urlencoded"  # whatever it sends, unless told otherwise
        for kind in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", curls):
            response = await http.post(CHAT, content=content, headers={"Content-Type": kind})
            assert response.status_code == 200


async def test_a_compressed_body_is_refused_by_name(client: Client, engine: FakeEngine) -> None:
    """Not read as it is, whatever it says; `identity` says nothing."""
    content = json.dumps(body()).encode()
    async with client(engine) as http:
        for path in (CHAT, TEXT, "/v1/responses", "/v1/messages"):
            for coding, sent in (("gzip", gzip.compress(content)), ("br", content), ("gzip, identity", content)):
                response = await http.post(path, content=sent, headers={"content-encoding": coding})
                assert response.status_code == 415
                assert f"Content-Encoding '{coding}' is not taken" in response.text
        response = await http.post(CHAT, content=content, headers={"content-encoding": "identity"})
        assert response.status_code == 200


async def test_an_object_is_called_an_object(client: Client, engine: FakeEngine) -> None:
    """Errors name no classes of ours."""
    async with client(engine) as http:
        for path, fields, param in (
            ("/v1/messages", {"tool_choice": "none", "max_tokens": 5}, "tool_choice"),
            ("/v1/messages", {"thinking": True, "max_tokens": 5}, "thinking"),
            (CHAT, {"messages": [None]}, "messages[0]"),
            (CHAT, {"stream_options": "all", "stream": True}, "stream_options"),
        ):
            response = await http.post(path, json=body(**fields))
            assert response.json()["error"]["message"] == f"{param}: must be an object."


async def test_bodies_that_are_too_large(client: Client, engine: FakeEngine) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1_000_000

    async with client(engine) as http:
        for path in VALID:
            assert str(LIMIT) in refused(await http.post(path, content=b" " * 10_000_000), status=413)
            assert str(LIMIT) in refused(await http.post(path, content=pieces()), status=413)
        assert (await http.post(CHAT, json=body())).status_code == 200


TEXTS: list[Callable[[int], str]] = [
    lambda size: "7 " * (size // 2),
    lambda size: "a" * size,
    lambda size: "<think>" * (size // 7),
    lambda size: "한" * (size // 3),
]


def conversations(text: str) -> Iterator[dict[str, Any]]:
    """Prompts that hold `text` in one place or another."""
    yield {"messages": [{"role": "user", "content": text}]}
    yield {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}, *HELLO]}
    yield {"messages": [{"role": "user", "content": piece} for piece in text.split("7")[:50_000]]}
    yield {
        "messages": [
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": f'{{"{text}": 1}}'}}]}
        ]
    }
    yield {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f", "description": text}}]}


async def test_prompts_that_are_too_long_by_far_are_refused_early(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        for make in TEXTS:
            text = make(LIMIT // 2)
            for asked in [*((CHAT, one) for one in conversations(text)), (TEXT, {"prompt": text})]:
                path, fields = asked
                error = error_of(await http.post(path, json=fields))
                if len(fields.get("messages", ())) == 1 or path == TEXT:
                    assert error["code"] == "context_length_exceeded"
                    assert "4096 tokens" in error["message"]
                    assert "at least" in error["message"]
        assert not engine.seen


async def test_the_count_of_a_prompt_that_is_a_little_too_long_is_exact(
    client: Client, engine: FakeEngine, fmt: ChatFormat
) -> None:
    messages = [{"role": "user", "content": "7 " * LONG}]
    tokens = len(fmt.render(messages, DIRECT))
    async with client(engine) as http:
        error = error_of(await http.post(CHAT, json={"messages": messages, "max_tokens": 10}))
        counted = (await http.post(TOKENIZE, json={"messages": messages})).json()["count"]
    assert counted == tokens
    assert f"requested {tokens + 10} tokens ({tokens} in the messages, 10 in the completion)" in error["message"]


@pytest.mark.parametrize("stage", ["body", "prompt", "grammar"])
async def test_slow_work_on_one_request_does_not_hold_up_another(
    client: Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, fmt: ChatFormat, stage: str
) -> None:
    """The slow work goes on until the other request's stream has ended, which would never be on the same thread."""
    ended = threading.Event()

    def after(work: Callable[..., Any]) -> Callable[..., Any]:
        def waits(*arguments: Any, **named: Any) -> Any:
            assert ended.wait(60)
            return work(*arguments, **named)

        return waits

    order: list[str] = []
    asked: dict[str, Any] = {"body": body(x="7" * LONG), "prompt": body(user="7" * LONG)}.get(stage, body())
    if stage == "grammar":
        asked |= {"structured_outputs": {"choice": ["ab"]}}
    async with client(engine) as http:
        places = {"body": (routes, "read_chat_request"), "grammar": (POOL, "_ask")}
        where, name = places.get(stage, (fmt, "render"))
        monkeypatch.setattr(where, name, after(getattr(where, name)))

        async def slow() -> None:
            assert (await http.post(CHAT, json=asked)).status_code == 200
            order.append("slow")

        async def quick() -> None:
            response = await http.post(TEXT, json={"prompt": "Once", "stream": True})
            assert events_of(response.text)[-1] == "[DONE]"
            order.append("quick")
            ended.set()

        await asyncio.gather(slow(), quick())
    assert order == ["quick", "slow"]


async def test_tokenizing_megabytes_lets_the_event_loop_turn(client: Client, engine: FakeEngine) -> None:
    """The library holds the interpreter for as long as it encodes, unless it is asked the right way.

    Held up, the loop turns about five times, always. A busy machine may keep it from turning too, but not every time.
    """
    most = 0
    async with client(engine) as http:
        for _ in range(20):
            slow = asyncio.create_task(http.post(TOKENIZE, json={"prompt": "7 " * 300_000}))
            turns = 0
            while not slow.done():
                await asyncio.sleep(0.001)
                turns += 1
            assert (await slow).json()["count"] == 600_000
            most = max(most, turns)
            if most > 50:
                break
    assert most > 50


async def test_nonsense_on_the_wire(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    """What never reaches the app is answered in the same shape, and other connections go on."""
    async with served(engine, profile, fmt, Settings()) as (_, port):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        for sent, status in [
            (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
            (head + b"Content-Length: x\r\n\r\n", 400),
            (head + b"Content-Length: -1\r\n\r\n", 400),
            (head + b"X: " + b"a" * 10_000_000, 431),
            (head + b"X: a\r\n" * 1_000_000, 431),
            (b"GET /" + b"a" * 10_000_000, 431),
            (head + b"Content-Length: 10000000\r\n\r\n{", 413),
            (head + b"Transfer-Encoding: chunked\r\n\r\n" + b"100000\r\n" + (b" " * 2**20 + b"\r\n") * 6, 400),
            (head + b"Transfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + b" " * 2**20 + b"\r\n") * 6, 413),
        ]:
            first, answer = await asyncio.to_thread(exchange, port, sent)
            assert f" {status} " in first, (sent[:80], first)
            assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                assert (await http.post(CHAT, json={"model": MODEL, "messages": HELLO})).status_code == 200


def exchange(port: int, sent: bytes) -> tuple[str, str]:
    """Status line and body of the answer to some bytes, however many of them the server takes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        sending = threading.Thread(target=_send, args=(connection, sent))
        sending.start()
        received = b""
        while b"\r\n\r\n" not in received or not received.partition(b"\r\n\r\n")[2]:
            piece = connection.recv(65_536)
            assert piece, received
            received += piece
        sending.join()
    head, _, content = received.partition(b"\r\n\r\n")
    return head.decode().splitlines()[0], content.decode()


def _send(connection: socket.socket, sent: bytes) -> None:
    try:
        connection.sendall(sent)
    except OSError:
        return  # the server closed the connection, having answered


def _naming(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Requests that name an address which somebody else's server would ask."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"$ref": url}}}
    image = [{"type": "image_url", "image_url": {"url": url}}]
    source = [{"type": "image", "source": {"type": "url", "url": url}}]
    part = [{"type": "input_image", "image_url": url}]
    mcp = {"type": "mcp", "server_label": "x", "server_url": url}
    return [
        (CHAT, body(response_format=schema)),
        (CHAT, body(tools=[tool], tool_choice="required")),
        (CHAT, body(messages=[{"role": "user", "content": image}])),
        ("/v1/messages", {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": source}]}),
        ("/v1/responses", {"model": MODEL, "input": [{"role": "user", "content": part}]}),
        ("/v1/responses", {"model": MODEL, "input": "a", "tools": [mcp], "tool_choice": "required"}),
    ]


async def test_nothing_is_fetched_that_a_request_names(client: Client, engine: FakeEngine) -> None:
    """A server that did would ask for its clients what they cannot reach themselves."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        for path, asked in _naming(f"http://127.0.0.1:{listener.getsockname()[1]}/x"):
            async with client(engine) as http:
                response = await http.post(path, json=asked)
            assert response.status_code == 400, response.text
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not engine.seen

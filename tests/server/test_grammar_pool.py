"""Grammars that cost too much: a named 400 for the one who sent them, and nothing for anybody else."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher

from chat_templates.format import ChatFormat
from server.core import grammar_jobs as jobs
from server.core import grammars, schema_limits
from server.core.grammar_jobs import RuleJob
from server.core.grammar_pool import POOL, GrammarPool
from server.errors import BadRequestError
from tests.fake_engine import FakeEngine
from tests.real_server import RealServer
from tests.server.conftest import HELLO, Client, always, body
from tests.server.test_http import error_of
from tests.server.test_streaming import events_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SCHEMA = "response_format.json_schema.schema"
ARRAYS = {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 100_000}
LIST = {
    "$ref": "#/$defs/N",
    "$defs": {"N": {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "required": ["n"]}},
}
MAYBE = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
COSTLY: list[Any] = [
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 1_000_000_000, "minItems": 1},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 10**7},
    {"type": "integer", "multipleOf": 1_000_003},
    {"type": "object", "properties": {f"p{n}": ARRAYS for n in range(8)}},
    {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(4000)}},
    LIST,
]


def formed(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("ab"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


def workers(parent: int) -> list[int]:
    """The processes of grammars that process `parent` has now."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes()
            state, above = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if b"server.core.grammar_worker" in command and int(above) == parent and state != "Z":
            found.append(int(folder.name))
    return found


async def test_costly_grammars_are_refused_by_name_while_a_stream_goes_on(
    client: Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits until another request and its stream have ended, which they would not on the same thread."""
    refused: list[Any] = []
    waiting: list[threading.Event] = []
    ask = POOL._ask

    def asked_beside(line: bytes, seconds: float) -> jobs.Reply:
        waiting.append(ended := threading.Event())
        assert ended.wait(120)
        return ask(line, seconds)

    monkeypatch.setattr(POOL, "_ask", asked_beside)
    async with client(engine) as http:

        async def refuse() -> None:
            for schema in COSTLY:
                response = await http.post(CHAT, json=body(**formed(schema)))
                refused.append((response.status_code, error_of(response)["param"]))

        beside = asyncio.create_task(refuse())
        while not beside.done():
            held = [waiting.pop() for _ in waiting[:]]
            assert (await http.get("/health")).status_code == 200
            response = await http.post(TEXT, json={"prompt": "x", "max_tokens": 3, "stream": True})
            assert events_of(response.text)[-1] == "[DONE]"
            for one in held:
                one.set()
        await beside
    assert refused == [(400, SCHEMA)] * len(COSTLY)


ODD = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=b)"}}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"json": COSTLY[3]}}, "structured_outputs.json"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": COSTLY[3]}}],
          "tool_choice": "required"}, "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": LIST}}],
          "tool_choice": "required"}, "tools[0].function.parameters"),
        ({"structured_outputs": {"grammar": 'start: "a"' + ' | "b" "c"' * 20_000}}, "structured_outputs.grammar"),
    ],
)  # fmt: skip
async def test_every_field_that_can_bring_a_grammar(
    client: Client, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
        assert (response.status_code, error_of(response)["param"]) == (400, param)
        assert (await http.post(CHAT, json={"messages": HELLO})).status_code == 200


@pytest.mark.parametrize(
    ("path", "field", "fields"),
    [
        (CHAT, "tools[1].function.parameters", {"tools": [
            {"type": "function", "function": {"name": name, "parameters": schema}}
            for name, schema in (("fine", {"type": "object"}), ("odd", ODD))
        ]}),
        ("/v1/messages", "tools[1].input_schema", {"tool_choice": {"type": "any"}, "max_tokens": 9, "tools": [
            {"name": name, "input_schema": schema} for name, schema in (("fine", {"type": "object"}), ("odd", ODD))
        ]}),
    ],
)  # fmt: skip
async def test_of_several_tools_the_one_at_fault_is_named(
    client: Client, engine: FakeEngine, path: str, field: str, fields: dict[str, Any]
) -> None:
    async with client(engine) as http:
        response = await http.post(path, json={**body(tool_choice="required"), **fields})
    assert (response.status_code, engine.seen) == (400, [])
    assert response.json()["error"]["message"].startswith(f"{field}: properties.a.pattern: look-around")


async def test_a_lost_process_is_replaced_and_what_it_said_is_remembered() -> None:
    pool = GrammarPool()
    others = set(workers(os.getpid()))
    job = RuleJob("x", "regex", "a+")
    text = await pool.written(job, 0)
    assert (text.text, text.is_long) == ("/a+/", True)
    (first,) = set(workers(os.getpid())) - others
    os.kill(first, signal.SIGKILL)
    assert await pool.written(job, 0) == text
    assert (await pool.written(RuleJob("x", "regex", "b+"), 0)).text
    (second,) = set(workers(os.getpid())) - others
    assert second != first
    pool.close()
    assert not set(workers(os.getpid())) - others
    assert await pool.written(job, 0) == text
    with pytest.raises(BadRequestError, match=r"^y: "):
        await pool.written(RuleJob("y", "regex", "("), 0)
    pool.close()


def test_no_process_outlives_the_one_that_started_it() -> None:
    code = """
import asyncio, time
from server.core.grammar_jobs import RuleJob
from server.core.grammar_pool import POOL
print(asyncio.run(POOL.written(RuleJob("x", "regex", "a+"), 0)).text, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"/a+/\n"
        (worker,) = workers(process.pid)
        process.kill()
    for _ in range(1000):
        command = Path(f"/proc/{worker}/cmdline")
        if not command.exists() or not command.read_bytes():  # what has ended and nobody has asked about has none
            return
        time.sleep(0.01)
    pytest.fail("the process is still there")


def test_a_server_has_one_before_it_is_ready_which_takes_the_first_schema() -> None:
    with RealServer(command=(sys.executable, "-m", "tests.scripted_process")) as server:
        before = workers(server.process.pid)
        asked = {"messages": HELLO, "max_tokens": 2, **formed({"type": "integer"})}
        assert httpx.post(server.url + CHAT, json=asked, timeout=60).status_code == 200
        assert workers(server.process.pid) == before
        server.stop()
    assert len(before) == 1


def test_the_front_end_itself_has_no_grammars() -> None:
    code = "import sys, server.app; print('llguidance' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


@pytest.mark.parametrize(
    ("schema", "is_refused"),
    [
        (LIST, True),
        ({"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}, True),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, True),
        ({"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}, True),
        ({"anyOf": [LIST, {"$ref": "#"}], "$defs": LIST["$defs"]}, True),
        ({"type": "object", "properties": {"n": MAYBE}, "required": ["n"]}, False),
        ({"type": "object", "properties": {"n": {"$ref": "#"}}}, False),
        ({"type": "array", "items": {"$ref": "#"}}, False),
        ({"$ref": "http://x.invalid/"}, False),
        ({"type": "number", "multipleOf": 1e-8}, False),
        ({"type": "integer", "multipleOf": 10**9}, False),
        ({"type": "number", "multipleOf": 0}, False),
        ({"type": "string", "maxLength": 2**53 - 1}, True),
        ({"type": "object", "properties": {"a": {"minItems": 10**6}}}, True),
        ({"const": {"maxItems": 10**9}}, False),
    ],
)  # fmt: skip
def test_limits_of_schemas(schema: Any, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(ValueError, match=r"itself|at most|remainders"):
            schema_limits.check(schema)
    else:
        schema_limits.check(schema)


def documents() -> st.SearchStrategy[dict[str, Any]]:
    """Schemas whose parts refer to each other and to all of it."""
    leaf = st.sampled_from([{"type": "null"}, {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"$ref": "#"}])
    part = st.recursive(
        leaf,
        lambda inner: (
            st.builds(lambda n: {"type": "object", "properties": {"n": n}, "required": ["n"]}, inner)
            | st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=2))
            | st.builds(lambda item: {"type": "array", "items": item}, inner)
        ),
        max_leaves=3,
    )
    return st.builds(lambda a, b, root: {**root, "$defs": {"a": a, "b": b}}, part, part, part)


@given(schema=documents(), levels=st.integers(0, 4))
def test_what_has_a_value_is_not_said_to_require_itself(schema: dict[str, Any], levels: int) -> None:
    value: Any = None
    for _ in range(levels):
        value = {"n": value}
    try:
        fits = jsonschema.Draft202012Validator(schema).is_valid(value)
    except RecursionError:  # a reference to nothing but itself
        return
    if fits:
        schema_limits.check(schema)


@pytest.mark.parametrize(
    ("memory", "seconds", "ending"), [(90 << 20, 2.0, signal.SIGABRT), (1 << 30, 0.1, signal.SIGPROF)]
)
def test_a_job_that_exceeds_a_limit_ends_alone(memory: int, seconds: float, ending: int) -> None:
    schema = {"type": "object", "properties": {f"p{n}": ARRAYS for n in range(8)}}
    code = f"from server.core import grammar_worker, grammars; grammars.MOST_MEMORY = {memory}; grammar_worker.main()"
    lines = [
        b"%g %b" % (seconds, jobs.encode(job)) for job in (RuleJob("x", "json", schema), RuleJob("x", "regex", "a+"))
    ]
    result = subprocess.run([sys.executable, "-c", code], input=b"\n".join(lines), capture_output=True, check=True)
    assert list(map(jobs.decode_reply, result.stdout.splitlines())) == [
        jobs.Died(ending),
        jobs.Written("/a+/", is_long=True),
    ]


async def test_costly_grammars_hold_up_costly_ones_only() -> None:
    pool = GrammarPool()
    schemas = [{"type": "object", "properties": {f"p{n}{i}": ARRAYS for n in range(8)}} for i in range(6)]
    costly = [asyncio.create_task(pool.written(RuleJob("x", "json", schema), 0)) for schema in schemas]
    await asyncio.sleep(0)
    for number in range(5):
        assert (await pool.written(RuleJob("y", "regex", "a" * (number + 1)), 0)).text
    assert not all(task.done() for task in costly)
    for task in costly:
        with pytest.raises(BadRequestError, match=r"^x: "):
            await task
    pool.close()


PAIRS = {f"a{n}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/a{n + 1}"}] * 2, "minItems": 2, "items": False}
         for n in range(17)}  # fmt: skip


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [7]},
        {"type": "array", "items": {"const": "a"}, "minItems": 30, "maxItems": 30},
        {"type": "array", "minItems": 5, "items": {"type": "array", "minItems": 6, "items": {"enum": [None]}}},
        {"type": "array", "minItems": 9, "items": {"type": "number", "minimum": 1e20, "maximum": 1e20}},
        {"type": "object", "properties": {"a": {"const": [1, {"b": "é"}]}, "c": {"type": "null"}},
         "required": ["a", "c"]},
        {"$ref": "#/$defs/a12", "$defs": {**PAIRS, "a17": {"const": 7}}},
    ],
)  # fmt: skip
def test_no_more_is_forced_than_is_said(schema: Any) -> None:
    matcher = LLMatcher(grammars.BYTES, f"start: {grammars.of_schema(schema)}", log_level=0)
    forced = len(matcher.compute_ff_tokens())
    assert 0 < forced <= schema_limits.most_forced(schema)


def test_common_schemas_are_not_long() -> None:
    thing = {"type": "object", "properties": {name: {"type": "string"} for name in ("name", "address", "comment")},
             "required": ["name", "address"], "description": "x" * 5000}  # fmt: skip
    assert schema_limits.most_forced(thing) < schema_limits.MOST_FORCED
    assert schema_limits.most_forced({"type": "array", "items": thing}) < schema_limits.MOST_FORCED

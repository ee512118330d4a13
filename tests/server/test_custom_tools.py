"""Custom tools and `allowed_tools` in chat completions, as OpenAI's SDK sends and reads them."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionAllowedToolChoiceParam,
    ChatCompletionCustomToolParam,
    ChatCompletionFunctionToolParam,
    ChatCompletionNamedToolChoiceCustomParam,
    ChatCompletionToolChoiceOptionParam,
)

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT
from server.modes.profile import Profile
from tests.fake_engine import FakeEngine
from tests.scripted_server import app_of, serving
from tests.server.conftest import HELLO, MODEL, Client, body
from tests.server.test_http import error_of
from tests.server.test_openapi import Document
from tests.server.test_streaming import events_of
from tests.server.test_tools import CHAT, call_ids

WEATHER: ChatCompletionFunctionToolParam = {"type": "function", "function": {"name": "weather"}}
CLOCK: ChatCompletionFunctionToolParam = {"type": "function", "function": {"name": "clock"}}
SHELL: ChatCompletionCustomToolParam = {"type": "custom", "custom": {"name": "shell", "description": "Runs a command"}}
PATH: ChatCompletionCustomToolParam = {
    "type": "custom",
    "custom": {
        "name": "path",
        "format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "(/[a-z]+)+"}},
    },
}
NAMED: ChatCompletionNamedToolChoiceCustomParam = {"type": "custom", "custom": {"name": "shell"}}
INPUT = 'echo "é😀"\n'


def allowed(mode: Any, *tools: Any) -> ChatCompletionAllowedToolChoiceParam:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


def as_function(name: str, **more: Any) -> dict[str, Any]:
    text = {"type": "string", **({"description": more.pop("form")} if "form" in more else {})}
    schema = {"type": "object", "properties": {"input": text}, "required": ["input"]}
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    """Calls a custom tool, its input escaped in part, then a function."""
    escaped = f'{{"name": "shell", "arguments": {json.dumps({"input": INPUT})}}}'
    custom = [fmt.tool_call_id, *fmt.encode_text(escaped), fmt.tool_call_end_id]
    calls = [*custom, *call_ids(fmt, "weather", {"city": "Rome"}), fmt.end_of_turn_id]
    return FakeEngine(lambda prompt: iter(calls), (fmt.end_of_turn_id,), chunks=(1, 3))


@pytest.fixture
def sdk(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> Iterator[openai.OpenAI]:
    with (
        serving(app_of(engine, profile, fmt)) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
    ):
        yield client


def ask(sdk: openai.OpenAI, **fields: Any) -> ChatCompletion:
    answer: ChatCompletion = sdk.chat.completions.create(model=MODEL, messages=HELLO, **fields)  # type: ignore[arg-type]
    return ChatCompletion.model_validate(answer.model_dump(), strict=True)


def test_a_call_of_a_custom_tool(sdk: openai.OpenAI, engine: FakeEngine, fmt: ChatFormat) -> None:
    answer = ask(sdk, tools=[SHELL, WEATHER])
    assert answer.choices[0].finish_reason == "tool_calls"
    custom, function = answer.choices[0].message.tool_calls or []
    assert custom.type == "custom"
    assert (custom.custom.name, custom.custom.input) == ("shell", INPUT)
    assert function.type == "function"
    assert function.function.arguments == '{"city": "Rome"}'
    shown: Any = [as_function("shell", description="Runs a command"), WEATHER]
    assert engine.seen[0].prompt_ids == fmt.render(HELLO, DIRECT, shown)
    # The call comes back with what the tool returned.
    said: Any = answer.choices[0].message.model_dump(exclude_none=True)
    results = [{"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in (custom, function)]
    sdk.chat.completions.create(model=MODEL, messages=[*HELLO, said, *results], tools=[SHELL, WEATHER])  # type: ignore[list-item]
    first, second = (request.prompt_ids for request in engine.seen)
    assert second[: len(first)] == first
    assert json.dumps({"input": INPUT}, ensure_ascii=False) in fmt.decode(second)


async def test_a_stream_has_the_input_in_parts(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        whole = (await http.post(CHAT, json=body(tools=[SHELL, WEATHER]))).json()
        text = (await http.post(CHAT, json=body(tools=[SHELL, WEATHER], stream=True))).text
        document = Document((await http.get("/openapi.json")).json())
    document.check(CHAT, "post", 200, "application/json", whole)
    *chunks, _done = events_of(text)
    for chunk in chunks:
        document.check(CHAT, "post", 200, "text/event-stream", chunk)
    parts = [one for chunk in chunks for one in chunk["choices"][0]["delta"].get("tool_calls", ())]
    of_custom = [part for part in parts if part["index"] == 0]
    assert [(of_custom[0]["type"], of_custom[0]["custom"])] == [("custom", {"name": "shell", "input": ""})]
    assert len(of_custom) > 3
    assert "".join(part["custom"]["input"] for part in of_custom) == INPUT
    assert "".join(part["function"]["arguments"] for part in parts if part["index"] == 1) == '{"city": "Rome"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "tool_calls"


def test_a_grammar_binds_the_input(sdk: openai.OpenAI, engine: FakeEngine, fmt: ChatFormat) -> None:
    ask(sdk, tools=[PATH])
    request = engine.seen[0]
    form = "Fits this regular expression:\n(/[a-z]+)+"
    assert request.prompt_ids == fmt.render(HELLO, DIRECT, [as_function("path", form=form, strict=True)])
    assert request.sampling.grammar is not None
    assert "(/[a-z]+)+" in request.sampling.grammar


def test_a_custom_tool_that_is_named(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    answer = ask(sdk, tools=[WEATHER, SHELL], tool_choice=NAMED)
    assert answer.choices[0].finish_reason == "stop"  # as OpenAI, for a named one
    grammar = engine.seen[0].sampling.grammar
    assert grammar is not None
    assert "shell" in grammar
    assert "weather" not in grammar


@pytest.mark.parametrize(
    ("choice", "shown", "bound"),
    [
        (allowed("auto", {"type": "function", "function": {"name": "clock"}}), [CLOCK], False),
        (allowed("required", {"type": "function", "function": {"name": "clock"}}), [CLOCK], True),
        (allowed("required", {"type": "custom", "custom": {"name": "shell"}}), [SHELL], True),
        (
            allowed("auto", {"type": "custom", "custom": {"name": "shell"}}, dict(WEATHER)),
            [WEATHER, SHELL],
            False,
        ),
    ],
)
def test_the_model_is_shown_the_allowed_tools_alone(
    sdk: openai.OpenAI,
    engine: FakeEngine,
    fmt: ChatFormat,
    choice: ChatCompletionToolChoiceOptionParam,
    shown: list[Any],
    *,
    bound: bool,
) -> None:
    ask(sdk, tools=[WEATHER, CLOCK, SHELL], tool_choice=choice)
    rendered = [as_function("shell", description="Runs a command") if tool is SHELL else tool for tool in shown]
    assert engine.seen[0].prompt_ids == fmt.render(HELLO, DIRECT, rendered)
    assert (engine.seen[0].sampling.grammar is not None) == bound


def custom(**fields: Any) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": "shell", **fields}}


def grammar(**fields: Any) -> dict[str, Any]:
    return custom(format={"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "a"', **fields}})


UNKNOWN = {"type": "function", "function": {"name": "sun"}}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tools": [{"type": "custom"}]}, "tools[0].custom", "is required"),
        ({"tools": [WEATHER, {"type": "custom", "custom": {}}]}, "tools[1].custom.name", "is required"),
        ({"tools": [WEATHER, custom(name="a b")]}, "tools[1].custom.name", "up to 64 letters"),
        ({"tools": [custom(format={"type": "xml"})]}, "tools[0].custom.format", "text, grammar"),
        ({"tools": [grammar(syntax="bnf")]}, "tools[0].custom.format.grammar.syntax", "must be"),
        (
            {"tools": [WEATHER, grammar(definition="a: b")]},
            "tools[1].custom.format.grammar.definition",
            "no grammar takes this",
        ),
        ({"tools": [WEATHER], "tool_choice": NAMED}, "tool_choice.custom.name", "no custom tool 'shell'"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", "is required"),
        ({"tools": [WEATHER], "tool_choice": allowed("none", UNKNOWN)}, "tool_choice.allowed_tools.mode", "must be"),
        ({"tools": [WEATHER], "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools", "at least 1"),
        (
            {"tools": [WEATHER], "tool_choice": allowed("auto", UNKNOWN)},
            "tool_choice.allowed_tools.tools[0].function.name",
            "no function tool 'sun'",
        ),
        (
            {
                "tools": [WEATHER, {"type": "function", "function": {"name": "clock", "parameters": {"type": 5}}}],
                "tool_choice": allowed("required", dict(CLOCK)),
            },
            "tools[1].function.parameters",
            "no grammar takes this",
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"input": "a"}}]}]},
            "messages[1].tool_calls[0].custom.name",
            "must be a string",
        ),
        (
            {"messages": [*HELLO, {"role": "assistant", "tool_calls": [custom(input=5)]}]},
            "messages[1].tool_calls[0].custom.input",
            "must be a string",
        ),
    ],
)
async def test_what_is_wrong_is_named(
    client: Client, engine: FakeEngine, fields: dict[str, Any], param: str, said: str
) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param), error
    assert said in error["message"]
    assert not engine.seen


async def test_the_tokens_of_the_allowed_tools_are_counted(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    choice = allowed("auto", {"type": "custom", "custom": {"name": "shell"}})
    async with client(engine) as http:
        counted = (await http.post("/tokenize", json=body(tools=[WEATHER, SHELL], tool_choice=choice))).json()
    assert counted["tokens"] == fmt.render(HELLO, DIRECT, [as_function("shell", description="Runs a command")])

"""Tool calls in forms that are not Hermes', over each API, streamed and whole, free and forced."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import GENERAL, load_profile
from server.settings import Settings
from tests.chat_templates.foreign import IM, QWEN, THINKING, make_foreign
from tests.fake_engine import FakeEngine
from tests.real_server import RealServer
from tests.server.test_real import ask

EOS = 2  # of the small tokenizers
QUESTION = "Weather?"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
PICTURE = "{# <function=…> <parameter=…> #}"
CODER = make_foreign(QWEN + PICTURE, IM, THINKING)
CALL = "<function=weather>\n<parameter=city>\n42\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>"
CALLED = {"city": "42", "days": 3}
FUNCTION = {"name": "weather", "parameters": SCHEMA}


def model(fmt: ChatFormat = CODER, call: str = CALL) -> FakeEngine:
    """Thinks where thinking is open; says something, and calls twice."""
    control = fmt.vocabulary.control

    def section() -> list[int]:
        return [control["<tool_call>"], *fmt.encode_text(f"\n{call}\n"), control["</tool_call>"]]

    answer = [*fmt.encode_text("Sure.\n"), *section(), *fmt.encode_text("\n"), *section(), EOS]
    thinking = [*fmt.encode_text("hm"), *fmt.close_thinking()]
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer), (EOS,), chunks=(3, 1, 7)
    )


@asynccontextmanager
async def serving(engine: FakeEngine, fmt: ChatFormat = CODER) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, Settings(served_model_name="m"), load_profile(GENERAL), fmt)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        yield http


def data_of(text: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


TOOL = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
async def test_chat(mode: str) -> None:
    asked = {
        "messages": [{"role": "user", "content": QUESTION}],
        "tools": [TOOL],
        "reasoning_mode": mode,
        "max_tokens": 900,
    }
    async with serving(model()) as http:
        whole = (await http.post("/v1/chat/completions", json=asked)).json()["choices"][0]
        streamed = (await http.post("/v1/chat/completions", json={**asked, "stream": True})).text
    assert (whole["message"]["content"], whole["finish_reason"]) == ("Sure.", "tool_calls")
    calls = [call["function"] for call in whole["message"]["tool_calls"]]
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("weather", CALLED)] * 2
    deltas = [call for part in data_of(streamed) for call in part["choices"][0]["delta"].get("tool_calls", [])]
    for index in (0, 1):
        pieces = [delta["function"].get("arguments", "") for delta in deltas if delta["index"] == index]
        assert "".join(pieces) == calls[index]["arguments"]
        assert len(pieces) > 3  # not only when the call is whole


async def test_responses() -> None:
    tool = {"type": "function", **FUNCTION}
    asked = {"model": "m", "input": QUESTION, "tools": [tool]}
    async with serving(model()) as http:
        whole = (await http.post("/v1/responses", json=asked)).json()
        streamed = (await http.post("/v1/responses", json={**asked, "stream": True})).text
    calls = [item for item in whole["output"] if item["type"] == "function_call"]
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("weather", CALLED)] * 2
    done = [part for part in data_of(streamed) if part["type"] == "response.function_call_arguments.done"]
    assert [json.loads(part["arguments"]) for part in done] == [CALLED] * 2


async def test_messages() -> None:
    tool = {"name": "weather", "input_schema": SCHEMA}
    asked = {"model": "m", "max_tokens": 900, "messages": [{"role": "user", "content": QUESTION}], "tools": [tool]}
    async with serving(model()) as http:
        whole = (await http.post("/v1/messages", json=asked)).json()
        streamed = (await http.post("/v1/messages", json={**asked, "stream": True})).text
    calls = [block for block in whole["content"] if block["type"] == "tool_use"]
    assert [(call["name"], call["input"]) for call in calls] == [("weather", CALLED)] * 2
    assert whole["stop_reason"] == "tool_use"
    parts = [part["delta"] for part in data_of(streamed) if part["type"] == "content_block_delta"]
    pieces = "".join(part["partial_json"] for part in parts if part["type"] == "input_json_delta")
    assert pieces == json.dumps(CALLED) * 2


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"tool_choice": "required", "tools": [TOOL]}),
        ("/v1/chat/completions", {"tool_choice": NAMED, "tools": [TOOL]}),
        ("/v1/chat/completions", {"tool_choice": "required", "tools": [TOOL], "parallel_tool_calls": False}),
        ("/v1/chat/completions", {"tool_choice": "required", "tools": [TOOL], "reasoning_mode": "reasoning"}),
        ("/v1/responses", {"tool_choice": "required", "tools": [{"type": "function", **FUNCTION}]}),
        ("/v1/messages", {"tool_choice": {"type": "any"}, "tools": [{"name": "weather", "input_schema": SCHEMA}]}),
    ],
)
async def test_a_forced_call_is_a_grammar_of_the_form(path: str, fields: dict[str, Any]) -> None:
    conversation: dict[str, Any] = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 900}
    if path == "/v1/responses":
        conversation = {"input": QUESTION}
    engine = model()
    async with serving(engine) as http:
        response = await http.post(path, json={"model": "m", **conversation, **fields})
    assert response.status_code == 200, response.text
    grammar = engine.seen[-1].sampling.grammar or ""
    assert f"<[{CODER.tool_call_id}]>" in grammar
    assert f"<[{CODER.tool_call_end_id}]>" in grammar
    assert '"<function=" "weather" ">"' in grammar
    assert '"<parameter=" "city" ">"' in grammar
    is_one = fields.get("parallel_tool_calls") is False or fields["tool_choice"] == NAMED
    assert ("call)*" in grammar) is not is_one
    assert [request.sampling.grammar for request in engine.seen[:-1]] == [None] * (len(engine.seen) - 1)


async def test_text_that_ends_a_call_of_a_strict_tool_in_free_text() -> None:
    strict = {"type": "function", "function": {**FUNCTION, "strict": True}}
    engine = model()
    async with serving(engine) as http:
        asked = {"messages": [{"role": "user", "content": QUESTION}], "tools": [strict]}
        response = await http.post("/v1/chat/completions", json=asked)
    assert response.status_code == 200, response.text
    assert 'text_to_call[suffix="<tool_call>"]' in (engine.seen[0].sampling.grammar or "")


@pytest.mark.engine
def test_a_forced_call_of_a_real_engine(tmp_path: Path) -> None:
    """The embedded model knows nothing of this form: the grammar alone makes it write a call, and it is read back."""
    turns = "{% for m in messages %}{{ '[|' ~ m.role ~ '|]\n' ~ m.content ~ '[|endofturn|]\n' }}{% endfor %}"
    template = tmp_path / "coder.jinja"
    template.write_text(
        turns
        + "{% if tools %}{{ tools }}{% endif %}{{ '[|assistant|]\n' }}"
        + PICTURE
        + "{# <think> #}{# <tool_call> #}"
    )
    with RealServer("--chat-template", str(template)) as server:
        for mode, choice in (("standard", "required"), ("reasoning", NAMED)):
            fields = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 600}
            budget = {"thinking_token_budget": 20} if mode == "reasoning" else {}
            answer = ask(server, QUESTION, reasoning_mode=mode, **fields, **budget)["choices"][0]
            (call,) = answer["message"]["tool_calls"]
            assert call["function"]["name"] == "weather"
            if answer["finish_reason"] != "length":
                assert isinstance(json.loads(call["function"]["arguments"])["city"], str)

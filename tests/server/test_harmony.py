"""gpt-oss through the server: levels, channels, budgets, calls free and forced, streamed and whole, past thinking."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.app import create_app
from server.settings import Settings
from tests.chat_templates.harmony import PROFILE, small_format
from tests.chat_templates.tool_forms.test_parsed import ids_of
from tests.fake_engine import FakeEngine
from tests.server.test_tool_forms import FUNCTION, QUESTION, SCHEMA, TOOL, data_of

FINAL = "<|start|>assistant<|channel|>final<|message|>"
CALL = '<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "42"}'
FMT = small_format()
CONTROL = FMT.vocabulary.control
EOS = (CONTROL["<|return|>"], CONTROL["<|call|>"], CONTROL["<|endoftext|>"])


def model(*turns: str, fmt: ChatFormat = FMT) -> FakeEngine:
    """Writes these, one after the other; what a prompt has of the text already is left out, after which it goes on."""
    rest = list(turns)

    def write(prompt: list[int]) -> Any:
        text = rest.pop(0) if len(rest) > 1 else rest[0]
        ids = ids_of(fmt, text)
        return iter(ids if fmt.is_thinking_open(prompt) else ids[ids.index(CONTROL["<|end|>"]) + 1 :])

    return FakeEngine(write, EOS, chunks=(3, 1, 7))


@asynccontextmanager
async def serving(engine: FakeEngine, **changed: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, Settings(served_model_name="m", **changed), PROFILE, FMT)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        yield http


async def asked(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 900, **fields}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def prompt_of(engine: FakeEngine, index: int = -1) -> str:
    return FMT.decode(engine.seen[index].prompt_ids, show_control=True)


ANSWER = f"hm<|end|>{FINAL}It is 4.<|return|>"
CALLS = f"Look it up.<|end|>{CALL}<|call|>"


async def test_channels_and_their_counts() -> None:
    async with serving(model(ANSWER)) as http:
        body = {"messages": [{"role": "user", "content": "2+2"}]}
        whole = (await http.post("/v1/chat/completions", json=body)).json()
        message, usage = whole["choices"][0]["message"], whole["usage"]
        assert (message["reasoning_content"], message["content"]) == ("hm", "It is 4.")
        assert usage["completion_tokens_details"]["reasoning_tokens"] == len(FMT.encode_text("hm"))
        assert whole["choices"][0]["finish_reason"] == "stop"
        modes = [entry["id"] for entry in (await http.get("/v1/models")).json()["data"]]
        assert modes == ["m", "m:reasoning", "m:low", "m:medium", "m:high"]
        refused = await http.post("/v1/chat/completions", json={**body, "reasoning_effort": "none"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reasoning_effort")


@pytest.mark.parametrize(
    ("fields", "level"),
    [
        ({}, "medium"),
        ({"reasoning_effort": "low"}, "low"),
        ({"reasoning_effort": "max"}, "high"),
        ({"reasoning_effort": "minimal"}, "low"),
        ({"reasoning_mode": "high"}, "high"),
        ({"model": "m:low"}, "low"),
        ({"chat_template_kwargs": {"reasoning_effort": "high"}}, "high"),
    ],
)
async def test_levels(fields: dict[str, Any], level: str) -> None:
    engine = model(ANSWER)
    async with serving(engine) as http:
        await asked(http, **fields)
    assert f"Reasoning: {level}\n" in prompt_of(engine)
    assert prompt_of(engine).endswith("<|start|>assistant<|channel|>analysis<|message|>")


async def test_a_spent_budget_opens_the_final_channel() -> None:
    endless = f"{'a' * 400}<|end|>{FINAL}It is 4.<|return|>"
    engine = model(endless)
    async with serving(engine) as http:
        choice = await asked(http, thinking_token_budget=120)
    assert (choice["reasoning_finish_reason"], choice["message"]["content"]) == ("budget", "It is 4.")
    then = engine.seen[0].then
    assert then is not None
    said = FMT.decode(list(then.forced_token_ids), show_control=True)
    assert said == f"\n\nTime is up, so I answer now.<|end|>{FINAL}"
    assert then.unless_token_id == CONTROL["<|end|>"]


AGAIN = "<|start|>assistant<|channel|>analysis<|message|>"


async def test_a_second_thought_is_counted_with_the_first() -> None:
    async with serving(model(f"hm<|end|>{AGAIN}so<|end|>{FINAL}It is 4.<|return|>")) as http:
        body = {"messages": [{"role": "user", "content": "2+2"}], "max_tokens": 900}
        whole = (await http.post("/v1/chat/completions", json=body)).json()
    choice = whole["choices"][0]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("hm\nso", "It is 4.")
    assert choice["reasoning_finish_reason"] == "natural"
    spent = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert spent == len(FMT.encode_text("hm")) + len(FMT.encode_text("so"))


@pytest.mark.parametrize("budget", [3, 20, 120])
@pytest.mark.parametrize("fields", [{}, {"min_tokens": 2}])
async def test_a_second_thought_is_bound_by_the_budget(budget: int, fields: dict[str, Any]) -> None:
    engine = model(f"h<|end|>{AGAIN}{'a' * 400}<|end|>", "h<|end|>It is 4.<|return|>")
    if fields:  # the answer is a generation of its own
        engine = model(
            f"h<|end|>{AGAIN}{'a' * 400}<|end|>", f"h<|end|>{AGAIN}{'a' * 400}", "h<|end|>It is 4.<|return|>"
        )
    async with serving(engine) as http:
        body = {"messages": [{"role": "user", "content": "2+2"}], "max_tokens": 900, "thinking_token_budget": budget}
        whole = (await http.post("/v1/chat/completions", json={**body, **fields})).json()
    choice = whole["choices"][0]
    assert (choice["reasoning_finish_reason"], choice["message"]["content"]) == ("budget", "It is 4.")
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] <= budget
    assert prompt_of(engine).endswith(f"<|end|>{FINAL}")


async def test_free_calls_streamed_and_whole() -> None:
    async with serving(model(CALLS)) as http:
        choice = await asked(http, tools=[TOOL])
        body = {"messages": [{"role": "user", "content": QUESTION}], "tools": [TOOL], "stream": True}
        parts = data_of((await http.post("/v1/chat/completions", json=body)).text)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "Look it up."
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("weather", {"city": "42"})
    deltas = [call for part in parts for call in part["choices"][0]["delta"].get("tool_calls", [])]
    pieces = [delta["function"].get("arguments", "") for delta in deltas]
    assert "".join(pieces) == call["function"]["arguments"]
    assert len(pieces) > 2


async def test_messages_and_responses() -> None:
    async with serving(model(CALLS)) as http:
        asked_messages = {
            "model": "m",
            "max_tokens": 900,
            "messages": [{"role": "user", "content": QUESTION}],
            "tools": [{"name": "weather", "input_schema": SCHEMA}],
        }
        whole = (await http.post("/v1/messages", json=asked_messages)).json()
        assert [block["input"] for block in whole["content"] if block["type"] == "tool_use"] == [{"city": "42"}]
        asked_responses = {"model": "m", "input": QUESTION, "tools": [{"type": "function", **FUNCTION}]}
        output = (await http.post("/v1/responses", json=asked_responses)).json()["output"]
        assert [item["type"] for item in output] == ["reasoning", "function_call"]


NAMED = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("parallel", [True, False])
async def test_a_forced_call(choice: Any, parallel: bool) -> None:
    engine = model(CALLS)
    async with serving(engine) as http:
        done = await asked(http, tools=[TOOL], tool_choice=choice, parallel_tool_calls=parallel)
    assert [call["function"]["name"] for call in done["message"]["tool_calls"]] == ["weather"]
    first, second = engine.seen
    assert (first.sampling.grammar, first.sampling.stop_token_ids) == (None, (CONTROL["<|end|>"],))
    assert prompt_of(engine).endswith("Look it up.<|end|>")  # the grammar has the header
    grammar = second.sampling.grammar or ""
    header = [CONTROL[token] for token in ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>")]
    assert all(f"<[{token_id}]>" in grammar for token_id in header)
    assert '"commentary to=functions."' in grammar
    assert ")*" not in grammar.split("call_0:")[0]  # one call a turn


async def test_a_forced_call_after_a_spent_budget() -> None:
    engine = model(f"{'a' * 400}<|end|>{CALL}<|call|>")
    async with serving(engine) as http:
        done = await asked(http, tools=[TOOL], tool_choice="required", thinking_token_budget=50)
    assert done["message"]["tool_calls"][0]["function"]["name"] == "weather"
    assert prompt_of(engine).endswith("<|end|>")


async def test_an_answer_in_json_begins_in_the_final_channel() -> None:
    engine = model('hm<|end|>{"a": 1}<|return|>')
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    async with serving(engine) as http:
        done = await asked(http, response_format=schema)
    assert done["message"]["content"] == '{"a": 1}'
    assert prompt_of(engine).endswith(f"hm<|end|>{FINAL}")


async def test_an_answer_in_json_or_a_call() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    engine = model(CALLS)
    async with serving(engine) as http:
        done = await asked(http, response_format=schema, tools=[TOOL])
    assert done["message"]["tool_calls"][0]["function"]["name"] == "weather"
    grammar = engine.seen[-1].sampling.grammar or ""
    assert "start: answer | calls" in grammar
    assert f'answer: <[{CONTROL["<|start|>"]}]> "assistant" <[{CONTROL["<|channel|>"]}]> "final"' in grammar


async def test_a_strict_tool_in_a_free_answer() -> None:
    strict = {"type": "function", "function": {**FUNCTION, "strict": True}}
    engine = model(ANSWER)
    async with serving(engine) as http:
        done = await asked(http, tools=[strict])
    assert done["message"]["content"] == "It is 4."
    assert "calls: call | <[" in (engine.seen[-1].sampling.grammar or "")


async def test_where_no_tool_may_be_called_the_answer_is_opened_for_the_model() -> None:
    engine = model(f"hm<|end|>{FINAL}It is 4.<|return|>")
    async with serving(engine) as http:
        done = await asked(http, tools=[TOOL], tool_choice="none")
    assert prompt_of(engine).endswith(f"hm<|end|>{FINAL}")
    assert engine.seen[-1].sampling.grammar == "start: TEXT\nTEXT: /(.|\\n)*/"
    assert done["message"].get("tool_calls") in (None, [])


async def test_probabilities_of_the_answer_are_those_of_its_text() -> None:
    async with serving(model(ANSWER)) as http:
        done = await asked(http, logprobs=True)
    assert "".join(entry["token"] for entry in done["logprobs"]["content"]) == "It is 4."


async def tool_turn(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    """The conversation with the call, and without its thinking, as most clients send it back."""
    choice = await asked(http, tools=[TOOL], **fields)
    (call,) = choice["message"]["tool_calls"]
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    return [{"role": "user", "content": QUESTION}, said, {"role": "tool", "tool_call_id": call["id"], "content": "Sun"}]


async def test_thinking_that_a_client_left_out_is_filled_in() -> None:
    engine = model(CALLS, ANSWER)
    async with serving(engine) as http:
        turns = await tool_turn(http)
        await asked(http, messages=turns, tools=[TOOL])
        assert "<|channel|>analysis<|message|>Look it up.<|end|>" in prompt_of(engine)
        turns[1]["reasoning_content"] = "Mine."
        await asked(http, messages=turns, tools=[TOOL])
        assert "Look it up." not in prompt_of(engine)
        assert "<|channel|>analysis<|message|>Mine.<|end|>" in prompt_of(engine)


async def test_of_another_salt_nothing_is_filled_in() -> None:
    engine = model(CALLS, ANSWER)
    async with serving(engine) as http:
        turns = await tool_turn(http, cache_salt="a")
        await asked(http, messages=turns, tools=[TOOL], cache_salt="b")
        assert "Look it up." not in prompt_of(engine)
        await asked(http, messages=turns, tools=[TOOL], cache_salt="a")
        assert "Look it up." in prompt_of(engine)


async def test_where_nothing_is_remembered_nothing_is_filled_in() -> None:
    engine = model(CALLS, ANSWER)
    async with serving(engine, remember_generated=False) as http:
        turns = await tool_turn(http)
        await asked(http, messages=turns, tools=[TOOL])
        assert "Look it up." not in prompt_of(engine)


async def test_thinking_of_a_tool_turn_in_anthropics_shape() -> None:
    engine = model(CALLS, ANSWER)
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    body: dict[str, Any] = {"model": "m", "max_tokens": 900, "tools": tools}
    async with serving(engine) as http:
        first = {"role": "user", "content": QUESTION}
        whole = (await http.post("/v1/messages", json={**body, "messages": [first]})).json()
        (use,) = [block for block in whole["content"] if block["type"] == "tool_use"]
        result = {"type": "tool_result", "tool_use_id": use["id"], "content": "Sun"}
        turns = [first, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
        response = await http.post("/v1/messages", json={**body, "messages": turns})
        assert response.status_code == 200, response.text
    assert "<|channel|>analysis<|message|>Look it up.<|end|>" in prompt_of(engine)

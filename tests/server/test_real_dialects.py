"""What only the engine can show of dialects and of inputs that were misread, with the embedded checkpoint."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from tests.real_server import RealServer

pytestmark = pytest.mark.engine
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def post(server: RealServer, path: str, **fields: Any) -> dict[str, Any]:
    response = httpx.post(server.url + path, json=fields, timeout=120)
    assert response.status_code == 200, response.text
    return dict(response.json())


def choice_of(server: RealServer, question: str, **fields: Any) -> dict[str, Any]:
    answer = post(server, CHAT, messages=[{"role": "user", "content": question}], **fields)
    return dict(answer["choices"][0])


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_the_spelling_of_a_control_token_comes_out_as_text(real_server: RealServer, fmt: ChatFormat, mode: str) -> None:
    spellings = fmt.vocabulary.control if mode == "standard" else ["</think>", "</tool_call>", "[|endofturn|]"]
    for spelling in spellings:
        text = f"a{spelling}b"
        schema = {
            "type": "object", "properties": {"x": {"const": text}}, "required": ["x"], "additionalProperties": False
        }  # fmt: skip
        escaped = "".join(f"\\{char}" if char in "[]|" else char for char in text)
        for form, expected in (
            ({"choice": [text]}, text),
            ({"json": {"const": text}}, json.dumps(text)),
            ({"regex": escaped}, text),
            ({"json": schema}, json.dumps({"x": text})),
        ):
            choice = choice_of(real_server, "Hi", structured_outputs=form, reasoning_mode=mode, max_tokens=200)
            assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop"), (form, choice)
        forced = {"tools": [tool("f", schema)], "tool_choice": "required", "parallel_tool_calls": False}
        choice = choice_of(real_server, "Hi", reasoning_mode=mode, max_tokens=200, **forced)
        (call,) = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"x": text}


WEATHER = {
    "type": "object",
    "properties": {"town": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["town", "days"],
    "additionalProperties": False,
}
QUESTIONS = ("What is 38 + 45?", "Hi", "How is the weather in Rome for 3 days?", "Use the tool weather for Oslo.")


def test_text_beside_strict_tools_is_what_it_is_without_a_grammar(real_server: RealServer) -> None:
    """Greedy answers without a call are the same to the letter; calls have the names and schemas that were offered."""
    texts = calls = 0
    for question in QUESTIONS:
        for seed in range(3):
            fields = {"max_tokens": 120, "temperature": 0.0 if seed == 0 else 1.5, "seed": seed}
            free = choice_of(real_server, question, tools=[tool("weather", WEATHER)], **fields)
            strict = choice_of(real_server, question, tools=[tool("weather", WEATHER, strict=True)], **fields)
            for call in strict["message"].get("tool_calls", []):
                calls += 1
                assert call["function"]["name"] == "weather"
                if strict["finish_reason"] != "length":
                    arguments = json.loads(call["function"]["arguments"])
                    assert arguments["town"] in ("Rome", "Oslo")
                    assert 1 <= arguments["days"] <= 9
            if seed == 0 and "tool_calls" not in free["message"]:
                texts += 1
                assert strict["message"]["content"] == free["message"]["content"]
    assert texts
    assert calls


def test_tokens_that_are_allowed_and_words_that_are_not(real_server: RealServer, fmt: ChatFormat) -> None:
    digits = [token for digit in "0123456789" for token in fmt.encode_text(digit)]
    only = choice_of(real_server, "What is 38 + 45?", allowed_token_ids=digits, max_tokens=8, return_token_ids=True)
    assert set(only["token_ids"]) <= set(digits)
    assert only["finish_reason"] == "length"
    plain = choice_of(real_server, "What is 38 + 45?")["message"]["content"]
    without = choice_of(real_server, "What is 38 + 45?", bad_words=[plain])["message"]["content"]
    assert plain not in without


def test_a_stop_that_is_a_newline_ends_at_once(real_server: RealServer, fmt: ChatFormat) -> None:
    for path, asked in ((TEXT, {"prompt": "One line\n"}), (CHAT, {"messages": [{"role": "user", "content": "Hi"}]})):
        fields = {**asked, "max_tokens": 30, "return_token_ids": True}
        form = {"structured_outputs": {"regex": "ab\\ncd"}}
        answer = post(real_server, path, stop="\n", **form, **fields)
        (choice,) = answer["choices"]
        assert fmt.decode(choice["token_ids"]).endswith("\n")
        assert choice["stop_reason"] == "\n"


def test_prompt_logprobs_of_a_real_prompt(real_server: RealServer) -> None:
    answer = post(real_server, TEXT, prompt="ab é😀한 cd", echo=True, logprobs=0, max_tokens=0, prompt_logprobs=2)
    (choice,) = answer["choices"]
    lists = choice["logprobs"]
    assert lists["text_offset"][lists["tokens"].index("c")] == 7
    assert choice["prompt_logprobs"][0] is None
    assert len(choice["prompt_logprobs"]) == len(lists["tokens"])
    assert all(len(place) in (2, 3) for place in choice["prompt_logprobs"][1:])


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
}


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_the_example_of_the_clients_page_is_right(real_server: RealServer, mode: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "clients.md").read_text()
    (question,) = set(re.findall(r'"content": "(Extract [^"]*)"', page))
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    choice = choice_of(real_server, question, response_format=form, reasoning_mode=mode)
    assert json.loads(choice["message"]["content"]) == {"name": "Paul", "age": 27, "city": "Lisbon"}

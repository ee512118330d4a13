"""Kimi K3 through the server: the end of its thinking is a word between two tokens; calls and answers have channels."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from server.app import create_app
from server.settings import Settings
from tests.chat_templates.test_kimi_k3 import CALL, FMT, PROFILE
from tests.chat_templates.tool_forms.test_parsed import ids_of
from tests.fake_engine import FakeEngine
from tests.server.test_tool_forms import QUESTION, TOOL

CLOSE = "<|close|>think<|sep|>"
SAID = "<|open|>response<|sep|>It is 4.<|close|>response<|sep|>"
END = "<|close|>message<|sep|><|end_of_msg|>"
EOS = FMT.vocabulary.control["<|end_of_msg|>"]


def model(thought: str, rest: str) -> FakeEngine:
    """Thinks where thinking is open, and then writes the rest; of that what the prompt has already is left out."""

    def write(prompt: list[int]) -> Any:
        if FMT.is_thinking_open(prompt):
            return iter(ids_of(FMT, thought + CLOSE + rest))
        return iter(ids_of(FMT, rest.removeprefix("<|open|>response<|sep|>")))

    return FakeEngine(write, (EOS,), chunks=(3, 1, 7))


@asynccontextmanager
async def serving(engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine, Settings(served_model_name="m"), PROFILE, FMT)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        yield http


async def asked(engine: FakeEngine, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 900, **fields}
    async with serving(engine) as http:
        response = await http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_both_modes() -> None:
    direct = (await asked(model("", f"{SAID}{END}")))["choices"][0]["message"]
    assert (direct["content"], direct.get("reasoning_content")) == ("It is 4.", None)
    answer = await asked(model("hm", f"{SAID}{END}"), reasoning_mode="reasoning")
    message, usage = answer["choices"][0]["message"], answer["usage"]
    assert (message["content"], message["reasoning_content"]) == ("It is 4.", "hm")
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len(FMT.encode_text("hm"))


async def test_a_spent_budget_opens_the_answer() -> None:
    engine = model("a" * 400, f"{SAID}{END}")
    choice = (await asked(engine, reasoning_mode="reasoning", thinking_token_budget=120))["choices"][0]
    assert (choice["reasoning_finish_reason"], choice["message"]["content"]) == ("budget", "It is 4.")
    prompt = FMT.decode(engine.seen[-1].prompt_ids, show_control=True)
    assert prompt.endswith(f"{CLOSE}<|open|>response<|sep|>")


async def test_a_forced_call_leaves_the_answer_and_opens_the_tools() -> None:
    for mode in ("standard", "reasoning"):
        rest = f"<|open|>response<|sep|><|close|>response<|sep|>{CALL}{END}"
        engine = model("hm", rest)
        choice = (await asked(engine, reasoning_mode=mode, tools=[TOOL], tool_choice="required"))["choices"][0]
        (call,) = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": 'a < "b"', "days": 3}
        assert not choice["message"]["content"]
        control = FMT.vocabulary.control
        start = f'<[{control["<|close|>"]}]> "response" <[{control["<|sep|>"]}]> <[{control["<|open|>"]}]> "tools"'
        assert start in (engine.seen[-1].sampling.grammar or "")
        prompt = FMT.decode(engine.seen[-1].prompt_ids, show_control=True)
        assert prompt.endswith("<|open|>response<|sep|>")

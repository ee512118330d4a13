"""langchain-anthropic: ChatAnthropic with modes, thinking, tools, structured output, streams, errors."""

from typing import Any

import anthropic
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool

from tests.clients import scenarios
from tests.clients.scenarios import MODEL, REPLY, SUM, WEATHER, Forecast

real = pytest.mark.engine
ADAPTIVE = {"thinking": {"type": "adaptive"}}


def chat(url: str, **fields: Any) -> ChatAnthropic:
    base = {"model": MODEL, "base_url": url.removesuffix("/v1"), "api_key": "none", "max_tokens": 400}
    return ChatAnthropic(**{**base, **fields})


def thinking_of(message: BaseMessage) -> str:
    return "".join(block["reasoning"] for block in message.content_blocks if block["type"] == "reasoning")


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return scenarios.get_weather(city)


@real
@pytest.mark.parametrize("how", [ADAPTIVE, {"model": f"{MODEL}:reasoning"}])
def test_reasoning_mode(url: str, how: dict[str, Any]) -> None:
    answer = chat(url, **how).invoke(SUM)
    assert answer.text
    assert thinking_of(answer)
    assert isinstance(answer, AIMessage)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


@real
@pytest.mark.parametrize("how", [{}, ADAPTIVE])
def test_a_stream(url: str, how: dict[str, Any]) -> None:
    whole: Any = None
    for chunk in chat(url, **how).stream(SUM):
        whole = chunk if whole is None else whole + chunk
    assert whole.text
    assert bool(thinking_of(whole)) == bool(how)
    assert whole.usage_metadata["output_tokens"] > 0


@real
@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output(url: str, method: Any) -> None:
    result = chat(url).with_structured_output(Forecast, method=method).invoke(WEATHER)
    assert isinstance(result, Forecast)


@pytest.mark.parametrize("how", [{}, ADAPTIVE])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_tool_loop(weather_server: str, how: dict[str, Any], *, streaming: bool) -> None:
    llm = chat(weather_server, streaming=streaming, temperature=0, **how).bind_tools([get_weather])
    messages: list[BaseMessage] = [HumanMessage(WEATHER)]
    called = llm.invoke(messages)
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("get_weather", {"city": "Rome"})]
    results: list[ToolMessage] = [get_weather.invoke(call) for call in called.tool_calls]
    answer = llm.invoke([*messages, called, *results])
    assert (answer.text, answer.tool_calls) == (REPLY, [])


def test_tokens_are_counted(scripted: str) -> None:
    assert chat(scripted).get_num_tokens_from_messages([HumanMessage(WEATHER)], tools=[get_weather]) > 10


def test_errors(scripted: str) -> None:
    with pytest.raises(anthropic.NotFoundError):
        chat(scripted, model="claude-other").invoke(SUM)

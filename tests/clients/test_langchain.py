"""langchain-openai: ChatOpenAI with modes, tools, structured output, streams, errors."""

from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from tests.clients import scenarios
from tests.clients.scenarios import MODEL, REPLY, SUM, WEATHER, Forecast
from tests.scripted_server import LostAtFirst

real = pytest.mark.engine
REASONING: list[dict[str, Any]] = [
    {"extra_body": {"reasoning_mode": "reasoning"}},
    {"model": f"{MODEL}:reasoning"},
    {"reasoning_effort": "low"},
]


def chat(url: str, **fields: Any) -> ChatOpenAI:
    return ChatOpenAI(**{"model": MODEL, "base_url": url, "api_key": "none", "max_tokens": 400, **fields})


def reasoning_tokens(message: BaseMessage) -> int:
    assert isinstance(message, AIMessage)
    assert message.usage_metadata is not None
    return message.usage_metadata["output_token_details"]["reasoning"]


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return scenarios.get_weather(city)


@real
@pytest.mark.parametrize("how", REASONING)
def test_reasoning_mode(url: str, how: dict[str, Any]) -> None:
    answer = chat(url, **how).invoke(SUM)
    assert answer.content
    assert "</think>" not in answer.text
    assert reasoning_tokens(answer) > 0


@real
def test_the_mode_of_one_request(url: str) -> None:
    llm = chat(url)
    assert reasoning_tokens(llm.invoke(SUM)) == 0
    assert reasoning_tokens(llm.invoke(SUM, extra_body={"reasoning_mode": "reasoning"})) > 0
    assert reasoning_tokens(llm.bind(reasoning_effort="low").invoke(SUM)) > 0


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
async def test_streams_and_batches(url: str, mode: str) -> None:
    async with openai.DefaultAsyncHttpxClient() as http:  # langchain's own outlives the loop of a test
        llm = chat(url, model=f"{MODEL}:{mode}", stream_usage=True, http_async_client=http)
        whole: Any = None
        async for chunk in llm.astream(SUM):
            whole = chunk if whole is None else whole + chunk
        answers = await llm.abatch([SUM, "Hi", SUM])
    assert whole.content
    assert (reasoning_tokens(whole) > 0) == (mode == "reasoning")
    assert all(answer.content for answer in answers)


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(url: str, mode: str, method: Literal["json_schema", "function_calling"]) -> None:
    llm = chat(url, model=f"{MODEL}:{mode}").with_structured_output(Forecast, method=method, include_raw=True)
    result = llm.invoke(WEATHER)
    assert isinstance(result, dict)
    assert isinstance(result["parsed"], Forecast), result
    assert (reasoning_tokens(result["raw"]) > 0) == (mode == "reasoning")


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
@pytest.mark.parametrize("choice", ["any", "Forecast"])
def test_a_forced_call(url: str, mode: str, choice: str) -> None:
    llm = chat(url, model=f"{MODEL}:{mode}").bind_tools([Forecast], tool_choice=choice, parallel_tool_calls=False)
    (call,) = llm.invoke(WEATHER).tool_calls
    assert call["name"] == "Forecast"
    Forecast.model_validate(call["args"])


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_tool_loop(weather_server: str, mode: str, *, streaming: bool) -> None:
    llm = chat(weather_server, model=f"{MODEL}:{mode}", streaming=streaming, temperature=0).bind_tools([get_weather])
    messages: list[BaseMessage] = [HumanMessage(WEATHER)]
    called = llm.invoke(messages)
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("get_weather", {"city": "Rome"})]
    results: list[ToolMessage] = [get_weather.invoke(call) for call in called.tool_calls]
    answer = llm.invoke([*messages, called, *results])
    assert (answer.content, answer.tool_calls) == (REPLY, [])


@real
def test_errors(url: str) -> None:
    llm = chat(url, max_retries=0)
    with pytest.raises(openai.BadRequestError) as caught:
        llm.invoke(SUM, extra_body={"reasoning_mode": "deep"})
    assert caught.value.param == "reasoning_mode"
    with pytest.raises(openai.NotFoundError):
        chat(url, model="gpt-5").invoke(SUM)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        list(llm.stream("9 " * 140_000))


def test_it_comes_back_when_it_is_told(faltering: tuple[str, LostAtFirst]) -> None:
    at, app = faltering
    before = app.refused
    app.lose()
    assert chat(at, max_retries=1).invoke(SUM).content
    assert app.refused == before + 1

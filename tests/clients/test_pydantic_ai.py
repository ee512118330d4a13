"""pydantic-ai: agents with modes, thinking parts, tools, each kind of structured output, streams, errors."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from pydantic_ai import Agent, ModelHTTPError, NativeOutput
from pydantic_ai.messages import ModelResponse, TextPart, ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.scenarios import MODEL, REPLY, SUM, WEATHER, Forecast, get_weather

real = pytest.mark.engine
REASONING: list[OpenAIChatModelSettings] = [
    {"extra_body": {"reasoning_mode": "reasoning"}},
    {"openai_reasoning_effort": "low"},
    {"thinking": "low"},
]


@asynccontextmanager
async def model(url: str, name: str = MODEL) -> AsyncIterator[OpenAIChatModel]:
    """With its profile told that the model can think, which makes pydantic-ai send its own `thinking` setting."""
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as sdk:
        provider = OpenAIProvider(openai_client=sdk)
        yield OpenAIChatModel(name, provider=provider, profile=ModelProfile(supports_thinking=True))


def last(messages: list[Any]) -> ModelResponse:
    assert isinstance(messages[-1], ModelResponse)
    return messages[-1]


def thinking_of(response: ModelResponse) -> str:
    return "".join(part.content for part in response.parts if isinstance(part, ThinkingPart))


@real
@pytest.mark.parametrize("settings", REASONING)
async def test_reasoning_mode(url: str, settings: OpenAIChatModelSettings) -> None:
    async with model(url) as llm:
        result = await Agent(llm, model_settings=OpenAIChatModelSettings(max_tokens=400, **settings)).run(SUM)
    assert result.output
    assert thinking_of(last(result.all_messages()))
    assert result.usage.details["reasoning_tokens"] > 0


@real
@pytest.mark.parametrize("name", [MODEL, f"{MODEL}:standard", f"{MODEL}:reasoning"])
async def test_the_mode_by_the_models_name_streamed(url: str, name: str) -> None:
    async with model(url, name) as llm:
        agent = Agent(llm, model_settings={"max_tokens": 400})
        async with agent.run_stream(SUM) as result:
            text = "".join([delta async for delta in result.stream_text(delta=True)])
    response = last(result.all_messages())
    assert [part.content for part in response.parts if isinstance(part, TextPart)] == [text]
    assert bool(thinking_of(response)) == name.endswith(":reasoning")
    assert result.usage.output_tokens > 0


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
@pytest.mark.parametrize("form", [Forecast, NativeOutput(Forecast)], ids=["tool", "native"])
async def test_structured_output(url: str, mode: str, form: Any) -> None:
    async with model(url, f"{MODEL}:{mode}") as llm:
        result = await Agent(llm, output_type=form, model_settings={"max_tokens": 400}).run(WEATHER)
    assert isinstance(result.output, Forecast)
    assert (result.usage.details["reasoning_tokens"] > 0) == (mode == "reasoning")


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
async def test_a_tool_loop(weather_server: str, mode: str) -> None:
    async with model(weather_server, f"{MODEL}:{mode}") as llm:
        agent = Agent(llm, tools=[get_weather], model_settings={"temperature": 0})
        result = await agent.run(WEATHER)
        async with agent.run_stream(None, message_history=result.all_messages()[:3]) as stream:
            streamed = await stream.get_output()
    assert result.output == streamed == REPLY
    assert bool(thinking_of(last(result.all_messages()))) == (mode == "reasoning")


@real
async def test_errors(url: str) -> None:
    async with model(url) as llm:
        with pytest.raises(ModelHTTPError, match="reasoning_mode") as caught:
            await Agent(llm, model_settings={"extra_body": {"reasoning_mode": "deep"}}).run(SUM)
    assert caught.value.status_code == 400
    async with model(url, "gpt-5") as llm:
        with pytest.raises(ModelHTTPError, match="model_not_found"):
            await Agent(llm).run(SUM)

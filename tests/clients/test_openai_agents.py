"""openai-agents with its defaults, which are `/v1/responses`: tools, handoffs, sessions, structured output, streams."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from agents.items import HandoffOutputItem, ReasoningItem, ToolCallItem, ToolCallOutputItem
from agents.memory import SQLiteSession

from chat_templates.format import ChatFormat
from server.modes.profile import Profile
from tests.clients import scenarios
from tests.clients.scenarios import MODEL, REPLY, SUM, WEATHER, Forecast
from tests.fake_engine import FakeEngine
from tests.scripted_server import app_of, serving

real = pytest.mark.engine


@function_tool(strict_mode=False)
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return scenarios.get_weather(city)


@pytest.fixture
async def connect() -> AsyncIterator[Any]:
    """Makes a server's API that of all agents."""
    set_tracing_disabled(True)
    clients: list[openai.AsyncOpenAI] = []

    def to(url: str) -> None:
        clients.append(openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0))
        set_default_openai_client(clients[-1])

    yield to
    for client in clients:
        await client.close()


def agent(**fields: Any) -> Agent[Any]:
    return Agent(**{"name": "Assistant", "model": MODEL, **fields})


def kinds(result: Any) -> list[type]:
    return [type(item) for item in result.new_items]


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
async def test_an_answer_whole_and_streamed(url: str, connect: Any, mode: str) -> None:
    connect(url)
    one = agent(model=f"{MODEL}:{mode}", model_settings=ModelSettings(max_tokens=400, temperature=0))
    whole = await Runner.run(one, SUM)
    assert whole.final_output
    assert (ReasoningItem in kinds(whole)) == (mode == "reasoning")
    streamed = Runner.run_streamed(one, SUM)
    deltas = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "".join(deltas) == streamed.final_output == whole.final_output
    assert whole.context_wrapper.usage.output_tokens > 0


@real
async def test_structured_output(url: str, connect: Any) -> None:
    connect(url)
    result = await Runner.run(agent(output_type=Forecast), WEATHER)
    assert isinstance(result.final_output, Forecast)


@real
async def test_a_session(url: str, connect: Any) -> None:
    connect(url)
    session = SQLiteSession("one")
    one = agent(model=f"{MODEL}:reasoning", model_settings=ModelSettings(max_tokens=400))
    await Runner.run(one, SUM, session=session)
    result = await Runner.run(one, "What is 1 + 2?", session=session)
    assert result.final_output
    assert len(await session.get_items()) == 6
    chained = await Runner.run(one, SUM, auto_previous_response_id=True)
    assert (await Runner.run(one, "And 1 + 2?", previous_response_id=chained.last_response_id)).final_output


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("chained", [False, True])
async def test_a_tool_loop(weather_server: str, connect: Any, mode: str, *, streamed: bool, chained: bool) -> None:
    connect(weather_server)
    one = agent(model=f"{MODEL}:{mode}", tools=[get_weather], model_settings=ModelSettings(temperature=0))
    if streamed:
        result: Any = Runner.run_streamed(one, WEATHER, auto_previous_response_id=chained)
        async for _ in result.stream_events():
            pass
    else:
        result = await Runner.run(one, WEATHER, auto_previous_response_id=chained)
    assert result.final_output == REPLY
    assert kinds(result).count(ToolCallItem) == kinds(result).count(ToolCallOutputItem) == 1
    assert kinds(result).count(ReasoningItem) == (2 if mode == "reasoning" else 0)


@pytest.fixture
def handing(fmt: ChatFormat, profile: Profile) -> Iterator[str]:
    """The API of a server whose model hands over to the agent for the weather, and speaks as that one."""

    def script(prompt: list[int]) -> Iterator[int]:
        call = json.dumps({"name": "transfer_to_weather", "arguments": {}})
        calling = [fmt.tool_call_id, *fmt.encode_text(call), fmt.tool_call_end_id]
        is_weather = "You tell the weather" in fmt.decode(prompt)
        return iter([*(fmt.encode_text(REPLY) if is_weather else calling), fmt.end_of_turn_id])

    with serving(app_of(FakeEngine(script, (fmt.end_of_turn_id,)), profile, fmt)) as at:
        yield at


async def test_a_handoff(handing: str, connect: Any) -> None:
    connect(handing)
    weather = agent(name="Weather", instructions="You tell the weather.")
    result = await Runner.run(agent(handoffs=[weather]), WEATHER)
    assert (result.final_output, result.last_agent.name) == (REPLY, "Weather")
    assert HandoffOutputItem in kinds(result)


@real
async def test_errors(url: str, connect: Any) -> None:
    connect(url)
    settings = ModelSettings(extra_body={"reasoning_mode": "deep"})
    with pytest.raises(openai.BadRequestError, match="reasoning_mode"):
        await Runner.run(agent(model_settings=settings), SUM)

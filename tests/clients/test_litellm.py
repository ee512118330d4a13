"""litellm: `openai/` and `hosted_vllm/` models, reasoning_content, streams put together again, tools, errors."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import litellm
import pytest

from tests.clients.scenarios import GET_WEATHER, MODEL, OBSERVED, REPLY, SUM, WEATHER, Forecast
from tests.scripted_server import LostAtFirst

# What Pydantic says of litellm's own code: a type of its first call's imports, an attribute that its streams read.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*using the `ReadOnly` qualifier:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the .* attribute on the instance:DeprecationWarning"),
]
real = pytest.mark.engine
REASONING: list[dict[str, Any]] = [
    {"extra_body": {"reasoning_mode": "reasoning"}},
    {"reasoning_mode": "reasoning"},
    {"model": f"openai/{MODEL}:reasoning"},
    {"reasoning_effort": "low"},
    {"model": f"hosted_vllm/{MODEL}", "reasoning_effort": "low"},
    {"model": f"hosted_vllm/{MODEL}", "thinking": {"type": "enabled", "budget_tokens": 100}},
]


@pytest.fixture(autouse=True)
def _tidy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lends litellm's sync calls an event loop, since they make one that nobody closes, and keeps its threads away."""
    monkeypatch.setattr(litellm, "suppress_debug_info", True)
    monkeypatch.setattr(litellm, "disable_streaming_logging", True)
    with asyncio.Runner() as runner:
        runner.get_loop()
        yield


def fields(url: str, **extra: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": SUM}]
    return {
        "model": f"openai/{MODEL}", "api_base": url, "api_key": "none", "messages": messages, "max_tokens": 400, **extra
    }  # fmt: skip


@real
@pytest.mark.parametrize("how", REASONING)
def test_reasoning_mode(url: str, how: dict[str, Any]) -> None:
    answer: Any = litellm.completion(**fields(url, **how))
    assert answer.choices[0].message.content
    assert answer.choices[0].message.reasoning_content
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0


@real
def test_standard_mode(url: str) -> None:
    answer: Any = litellm.completion(**fields(url))
    assert answer.choices[0].message.content
    assert getattr(answer.choices[0].message, "reasoning_content", None) is None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
async def test_streams(url: str, mode: str) -> None:
    asked = fields(url, model=f"openai/{MODEL}:{mode}", stream=True, stream_options={"include_usage": True})
    for chunks in (list(litellm.completion(**asked)), [chunk async for chunk in await litellm.acompletion(**asked)]):
        whole: Any = litellm.stream_chunk_builder(chunks)
        assert whole.choices[0].message.content
        assert bool(getattr(whole.choices[0].message, "reasoning_content", None)) == (mode == "reasoning")
        assert (whole.usage.completion_tokens_details.reasoning_tokens > 0) == (mode == "reasoning")


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_structured_answers(url: str, mode: str) -> None:
    answer: Any = litellm.completion(**fields(url, model=f"openai/{MODEL}:{mode}", response_format=Forecast))
    Forecast.model_validate_json(answer.choices[0].message.content)


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop(weather_server: str, mode: str, *, stream: bool) -> None:
    messages: list[Any] = [{"role": "user", "content": WEATHER}]
    asked = fields(weather_server, model=f"openai/{MODEL}:{mode}", tools=[GET_WEATHER], stream=stream, temperature=0)
    for _ in range(2):
        answer: Any = litellm.completion(**{**asked, "messages": messages})
        if stream:
            answer = litellm.stream_chunk_builder(list(answer))
        message = answer.choices[0].message
        assert bool(getattr(message, "reasoning_content", None)) == (mode == "reasoning")
        messages.append(message)
        for call in message.tool_calls or []:
            assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Rome"})
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(OBSERVED)})
    assert len(messages) == 4
    assert messages[-1].content == REPLY


@real
def test_errors(url: str) -> None:
    with pytest.raises(litellm.exceptions.BadRequestError, match='must be "standard" or "reasoning"'):
        litellm.completion(**fields(url, reasoning_mode="deep"))
    with pytest.raises(litellm.exceptions.NotFoundError, match="gpt-5"):
        litellm.completion(**fields(url, model="openai/gpt-5"))
    with pytest.raises(litellm.exceptions.ContextWindowExceededError):
        litellm.completion(**fields(url, messages=[{"role": "user", "content": "9 " * 140_000}]))


def test_it_comes_back_when_it_is_told(faltering: tuple[str, LostAtFirst]) -> None:
    at, app = faltering
    before = app.refused
    app.lose()
    with pytest.raises(litellm.exceptions.ServiceUnavailableError):
        litellm.completion(**fields(at, max_retries=0))
    app.lose()
    answer: Any = litellm.completion(**fields(at, max_retries=1))
    assert answer.choices
    assert app.refused == before + 2

"""OpenAI's SDK: modes, parsed answers, tools, streaming helpers, errors; sync and async."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam, ChatCompletionToolParam

from tests.clients.scenarios import (
    GET_WEATHER,
    MODEL,
    OBSERVED,
    REPLY,
    SUM,
    WEATHER,
    Forecast,
)
from tests.scripted_server import LostAtFirst

real = pytest.mark.engine

REASONING: list[dict[str, Any]] = [
    {"extra_body": {"reasoning_mode": "reasoning"}},
    {"model": f"{MODEL}:reasoning"},
    {"reasoning_effort": "low"},
    {"extra_body": {"reasoning": {"effort": "low"}}},
    {"extra_body": {"thinking": {"type": "enabled", "budget_tokens": 100}}},
    {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
]
STANDARD: list[dict[str, Any]] = [
    {},
    {"model": f"{MODEL}:standard"},
    {"reasoning_effort": "none"},
    {"extra_body": {"thinking": {"type": "disabled"}}},
]


def ask(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def fields(**extra: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": ask(SUM), "max_tokens": 400, **extra}


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_sdk(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def reasoning_tokens(answer: ChatCompletion) -> int:
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens is not None
    return answer.usage.completion_tokens_details.reasoning_tokens


@real
@pytest.mark.parametrize("how", REASONING)
def test_reasoning_mode(sdk: openai.OpenAI, how: dict[str, Any]) -> None:
    answer: ChatCompletion = sdk.chat.completions.create(**fields(**how))
    (choice,) = answer.choices
    assert choice.message.content
    thinking = (choice.message.model_extra or {})["reasoning_content"]
    assert thinking
    assert "</think>" not in thinking + choice.message.content
    assert reasoning_tokens(answer) > 0


@real
@pytest.mark.parametrize("how", STANDARD)
def test_standard_mode(sdk: openai.OpenAI, how: dict[str, Any]) -> None:
    answer: ChatCompletion = sdk.chat.completions.create(**fields(**how))
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.model_extra
    assert reasoning_tokens(answer) == 0


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_parsed_answers(sdk: openai.OpenAI, mode: str) -> None:
    answer = sdk.chat.completions.parse(
        model=f"{MODEL}:{mode}", messages=ask(WEATHER), response_format=Forecast, max_tokens=400
    )
    assert isinstance(answer.choices[0].message.parsed, Forecast)
    assert ("reasoning_content" in (answer.choices[0].message.model_extra or {})) == (mode == "reasoning")


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Forecast"}}])
def test_a_forced_call_is_parsed(sdk: openai.OpenAI, mode: str, choice: Any) -> None:
    answer = sdk.chat.completions.parse(
        model=f"{MODEL}:{mode}", messages=ask(WEATHER), tools=[openai.pydantic_function_tool(Forecast)],
        tool_choice=choice, parallel_tool_calls=False, max_tokens=400,
    )  # fmt: skip
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Forecast)
    assert answer.choices[0].finish_reason == ("tool_calls" if choice == "required" else "stop")


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_the_streaming_helper_parses(sdk: openai.OpenAI, mode: str) -> None:
    with sdk.chat.completions.stream(
        model=f"{MODEL}:{mode}", messages=ask(WEATHER), response_format=Forecast, max_tokens=400,
        stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        events = list(stream)
        final = stream.get_final_completion()
    text = "".join(event.delta for event in events if event.type == "content.delta")
    assert final.choices[0].message.content == text
    assert final.choices[0].message.parsed == Forecast.model_validate_json(text)
    deltas = [event.chunk.choices[0].delta for event in events if event.type == "chunk" and event.chunk.choices]
    thinking = "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas)
    assert bool(thinking) == (mode == "reasoning")
    assert (reasoning_tokens(final) > 0) == (mode == "reasoning")


@real
async def test_async_side_by_side(async_sdk: openai.AsyncOpenAI) -> None:
    answers = await asyncio.gather(
        *(
            async_sdk.chat.completions.create(**fields(model=f"{MODEL}:{mode}"))
            for mode in ("standard", "reasoning") * 4
        )
    )
    assert [reasoning_tokens(answer) > 0 for answer in answers] == [False, True] * 4
    parsed = await async_sdk.chat.completions.parse(model=MODEL, messages=ask(WEATHER), response_format=Forecast)
    assert isinstance(parsed.choices[0].message.parsed, Forecast)
    async with async_sdk.chat.completions.stream(
        model=f"{MODEL}:reasoning", messages=ask(WEATHER), response_format=Forecast, max_tokens=400
    ) as stream:
        text = "".join([event.delta async for event in stream if event.type == "content.delta"])
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == Forecast.model_validate_json(text)


@real
def test_a_stream_that_is_left_early(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.create(**fields(model=f"{MODEL}:reasoning"), stream=True) as stream:
        assert next(iter(stream)).choices[0].delta.role == "assistant"
    assert sdk.chat.completions.create(**fields()).choices[0].message.content


@real
def test_models_and_texts(sdk: openai.OpenAI) -> None:
    assert {model.id for model in sdk.models.list()} == {MODEL, f"{MODEL}:standard", f"{MODEL}:reasoning"}
    assert sdk.models.retrieve(f"{MODEL}:reasoning").id == f"{MODEL}:reasoning"
    assert sdk.completions.create(model=MODEL, prompt="38+45:", max_tokens=5).usage is not None


@real
@pytest.mark.parametrize(
    ("wrong", "kind", "param", "code"),
    [
        ({"extra_body": {"reasoning_mode": "deep"}}, openai.BadRequestError, "reasoning_mode", None),
        ({"extra_body": {"reasonning_mode": "reasoning"}}, openai.BadRequestError, "reasonning_mode", None),
        ({"temperature": -1.0}, openai.BadRequestError, "temperature", None),
        ({"messages": ask("9 " * 140_000)}, openai.BadRequestError, "messages", "context_length_exceeded"),
        ({"model": "gpt-5"}, openai.NotFoundError, "model", "model_not_found"),
        (
            {"model": f"{MODEL}:standard", "reasoning_effort": "high"},
            openai.BadRequestError,
            "reasoning_effort",
            None,
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_sdks(
    sdk: openai.OpenAI, wrong: dict[str, Any], kind: type[openai.APIStatusError], param: str, code: str | None, *,
    stream: bool,
) -> None:  # fmt: skip
    with pytest.raises(kind) as caught:
        sdk.chat.completions.create(**fields(**wrong), stream=stream)
    assert (caught.value.param, caught.value.code) == (param, code)


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_a_tool_loop(weather_server: str, mode: str) -> None:
    tools: list[ChatCompletionToolParam] = [{"type": "function", "function": GET_WEATHER["function"]}]
    messages: list[Any] = ask(WEATHER)
    with openai.OpenAI(base_url=weather_server, api_key="none") as sdk:
        for _ in range(2):
            with sdk.chat.completions.stream(
                model=f"{MODEL}:{mode}", messages=messages, tools=tools, temperature=0
            ) as stream:
                events = list(stream)
                message = stream.get_final_completion().choices[0].message
            assert bool((message.model_extra or {}).get("reasoning_content")) == (mode == "reasoning")
            messages.append(message.model_dump(exclude_none=True))
            for call in message.tool_calls or []:
                assert json.loads(call.function.arguments) == {"city": "Rome"}
                assert "tool_calls.function.arguments.done" in {event.type for event in events}
                messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(OBSERVED)})
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[-1]["content"] == REPLY


def test_it_comes_back_when_it_is_told(faltering: tuple[str, LostAtFirst]) -> None:
    at, app = faltering
    for retries in (1, 0):
        app.lose()
        with openai.OpenAI(base_url=at, api_key="none", max_retries=retries) as sdk:
            if retries:
                assert sdk.chat.completions.create(**fields()).choices
                continue
            with pytest.raises(openai.InternalServerError) as caught:
                sdk.chat.completions.create(**fields())
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"] == "1"
    assert app.refused == 2

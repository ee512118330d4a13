"""OpenAI's SDK on `/v1/responses`: modes, parsed answers, tools, streams, what is stored, errors; sync and async."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from tests.clients.scenarios import GET_WEATHER, MODEL, OBSERVED, REPLY, SUM, WEATHER, Forecast

real = pytest.mark.engine
TOOL: dict[str, Any] = {"type": "function", **GET_WEATHER["function"]}
REASONING: list[dict[str, Any]] = [
    {"extra_body": {"reasoning_mode": "reasoning"}},
    {"model": f"{MODEL}:reasoning"},
    {"reasoning": {"effort": "low"}},
    {"extra_body": {"thinking_token_budget": 30, "reasoning_mode": "reasoning"}},
]


def fields(**extra: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": SUM, "max_output_tokens": 400, **extra}


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def thinking_of(response: Response) -> str:
    return "".join(part.text for item in response.output if item.type == "reasoning" for part in item.content or [])


def reasoning_tokens(response: Response) -> int:
    assert response.usage is not None
    return response.usage.output_tokens_details.reasoning_tokens


@real
@pytest.mark.parametrize("how", [{}, {"model": f"{MODEL}:standard"}, {"reasoning": {"effort": "none"}}])
def test_standard_mode(sdk: openai.OpenAI, how: dict[str, Any]) -> None:
    response: Response = sdk.responses.create(**fields(**how))
    assert (response.status, response.error) == ("completed", None)
    assert response.output_text
    assert (thinking_of(response), reasoning_tokens(response)) == ("", 0)


@real
@pytest.mark.parametrize("how", REASONING)
def test_reasoning_mode(sdk: openai.OpenAI, how: dict[str, Any]) -> None:
    response: Response = sdk.responses.create(**fields(**how))
    assert response.output_text
    assert thinking_of(response)
    assert "</think>" not in thinking_of(response) + response.output_text
    assert reasoning_tokens(response) > 0


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_a_stream_and_its_helper(sdk: openai.OpenAI, mode: str) -> None:
    asked = fields(model=f"{MODEL}:{mode}", temperature=0)
    whole = sdk.responses.create(**asked)
    with sdk.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    thoughts = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(texts) == final.output_text == whole.output_text
    assert "".join(thoughts) == thinking_of(final) == thinking_of(whole)
    assert bool(thoughts) == (mode == "reasoning")
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.usage == whole.usage or mode == "reasoning"


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_parsed_answers(sdk: openai.OpenAI, mode: str) -> None:
    asked: dict[str, Any] = {"model": f"{MODEL}:{mode}", "input": WEATHER, "text_format": Forecast}
    asked["max_output_tokens"] = 400  # what the model thinks of the weather may have no end
    assert isinstance(sdk.responses.parse(**asked).output_parsed, Forecast)
    with sdk.responses.stream(**asked) as stream:
        list(stream)
        assert isinstance(stream.get_final_response().output_parsed, Forecast)


@real
@pytest.mark.parametrize("mode", ["standard", "reasoning"])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "Forecast"}])
def test_a_forced_call_is_parsed(sdk: openai.OpenAI, mode: str, choice: Any) -> None:
    response = sdk.responses.parse(
        model=f"{MODEL}:{mode}",
        input=WEATHER,
        tools=[{"type": "function", "name": "Forecast", "parameters": Forecast.model_json_schema(), "strict": True}],
        tool_choice=choice,
        parallel_tool_calls=False,
        max_output_tokens=400,
    )
    (call,) = [item for item in response.output if item.type == "function_call"]
    Forecast.model_validate_json(call.arguments)


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
@pytest.mark.parametrize("stored", [True, False])
def test_a_tool_loop(weather_server: str, mode: str, *, stored: bool) -> None:
    asked: dict[str, Any] = {
        "model": f"{MODEL}:{mode}", "tools": [TOOL], "temperature": 0, "store": stored,
        "include": ["reasoning.encrypted_content"],
    }  # fmt: skip
    conversation: list[Any] = [{"role": "user", "content": WEATHER}]
    with openai.OpenAI(base_url=weather_server, api_key="none") as sdk:
        first = sdk.responses.create(input=conversation, **asked)
        (call,) = [item for item in first.output if item.type == "function_call"]
        assert json.loads(call.arguments) == {"city": "Rome"}
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": json.dumps(OBSERVED)}
        if stored:
            second = sdk.responses.create(input=[result], previous_response_id=first.id, **asked)
        else:
            second = sdk.responses.create(input=[*conversation, *first.output, result], **asked)
    assert second.output_text == REPLY
    assert (reasoning_tokens(first) > 0) == (mode == "reasoning")


@real
def test_what_is_stored(sdk: openai.OpenAI) -> None:
    long = "Answer with the number alone, and with nothing else. " * 20  # pages are shared only when they are full
    first = sdk.responses.create(**fields(instructions=long))
    assert sdk.responses.retrieve(first.id).to_dict() == first.to_dict()
    (item,) = sdk.responses.input_items.list(first.id).data
    assert item.type == "message"
    second = sdk.responses.create(**fields(input="Hi", instructions=long, previous_response_id=first.id))
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    counted = sdk.responses.input_tokens.count(model=MODEL, input=SUM, instructions=long)
    assert counted.input_tokens == first.usage.input_tokens
    sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="was deleted"):
        sdk.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.responses.create(**fields(previous_response_id=second.id))
    assert caught.value.code == "previous_response_not_found"


@real
@pytest.mark.parametrize(
    ("wrong", "kind", "param", "code"),
    [
        ({"extra_body": {"reasoning_mode": "deep"}}, openai.BadRequestError, "reasoning_mode", None),
        ({"temperature": -1.0}, openai.BadRequestError, "temperature", None),
        ({"input": "9 " * 140_000}, openai.BadRequestError, "input", "context_length_exceeded"),
        ({"model": "gpt-5"}, openai.NotFoundError, "model", "model_not_found"),
        ({"background": True, "store": False}, openai.BadRequestError, "background", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_sdks(
    sdk: openai.OpenAI, wrong: dict[str, Any], kind: type[openai.APIStatusError], param: str, code: str | None, *,
    stream: bool,
) -> None:  # fmt: skip
    with pytest.raises(kind) as caught:
        sdk.responses.create(**fields(**wrong), stream=stream)
    assert (caught.value.param, caught.value.code) == (param, code)


@real
def test_in_the_background(sdk: openai.OpenAI) -> None:
    with sdk.responses.create(**fields(background=True), stream=True) as stream:
        begun = next(iter(stream))
    assert begun.type == "response.created"
    with sdk.responses.retrieve(begun.response.id, stream=True, starting_after=begun.sequence_number) as stream:
        *events, last = stream
    assert [event.sequence_number for event in events] == list(range(1, last.sequence_number))
    assert last.type == "response.completed"
    done = sdk.responses.retrieve(begun.response.id)
    assert (done.status, done.output_text) == ("completed", last.response.output_text)


@real
async def test_async_and_cancelled(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as sdk:
        asked = fields(extra_body={"ignore_eos": True}, max_output_tokens=4000)
        async with await sdk.responses.create(**asked, stream=True) as stream:
            first = await anext(aiter(stream))
            assert first.type == "response.created"
            assert (await sdk.responses.cancel(first.response.id)).status == "cancelled"
            events = [event async for event in stream]
        assert events[-1].type == "response.incomplete"
        assert events[-1].response.status == "cancelled"

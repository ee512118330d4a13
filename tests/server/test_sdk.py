"""OpenAI's own client against a real HTTP server around a scripted engine."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from chat_templates.format import ChatFormat
from server.app import create_app
from server.engine_client import EngineStatus
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.scripted_server import serving
from tests.server.conftest import MODEL

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def engine(fmt: ChatFormat) -> FakeEngine:
    answer = [*fmt.encode_text("It is 4."), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("2 and 2"), *fmt.close_thinking()]
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer),
        (fmt.end_of_turn_id,),
        chunks=(1, 3),
    )


@pytest.fixture(scope="module")
def url(engine: FakeEngine, fmt: ChatFormat, profile: Profile) -> Iterator[str]:
    with serving(create_app(engine, Settings(), profile, fmt)) as at:
        yield at


@pytest.fixture(scope="module")
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_both_modes(sdk: openai.OpenAI) -> None:
    direct = sdk.chat.completions.create(model=MODEL, messages=QUESTION)
    reasoned = sdk.chat.completions.create(model=MODEL, messages=QUESTION, extra_body={"reasoning_mode": "reasoning"})
    assert direct.choices[0].message.content == reasoned.choices[0].message.content == "It is 4."
    assert not direct.choices[0].message.model_extra
    assert reasoned.choices[0].message.model_extra == {"reasoning_content": "2 and 2", "reasoning": "2 and 2"}
    assert reasoned.choices[0].model_extra == {"reasoning_finish_reason": "natural", "stop_reason": None}
    assert reasoned.usage is not None
    assert reasoned.usage.completion_tokens_details is not None
    assert reasoned.usage.completion_tokens_details.reasoning_tokens


def test_streaming(sdk: openai.OpenAI) -> None:
    stream = sdk.chat.completions.create(
        model=f"{MODEL}:reasoning", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "It is 4."
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "2 and 2"
    assert last.usage is not None
    assert last.usage.completion_tokens == last.usage.total_tokens - last.usage.prompt_tokens > 0


async def test_async_and_side_by_side(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as sdk:
        answers = await asyncio.gather(
            *(sdk.chat.completions.create(model=MODEL, messages=QUESTION) for _ in range(20)),
        )
        stream = await sdk.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert {answer.choices[0].message.content for answer in answers} == {text} == {"It is 4."}


def test_the_id_of_a_request(sdk: openai.OpenAI) -> None:
    named = {"X-Request-Id": "mine"}
    answer = sdk.chat.completions.create(model=MODEL, messages=QUESTION, extra_headers=named)
    assert answer._request_id == "mine"
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model=MODEL, messages=QUESTION, temperature=9, extra_headers=named)
    assert refused.value.request_id == "mine"


class Sum(BaseModel):
    """What the answer is parsed to."""

    a: int
    total: int


class Weather(BaseModel):
    """The arguments of a tool."""

    city: str


@contextmanager
def answering(engine: FakeEngine, ids: list[int]) -> Iterator[None]:
    """The engine writes `ids` meanwhile."""
    before, engine.script = engine.script, lambda _prompt: iter(ids)
    try:
        yield
    finally:
        engine.script = before


def test_an_answer_parsed_to_a_model(sdk: openai.OpenAI, engine: FakeEngine, fmt: ChatFormat) -> None:
    with answering(engine, [*fmt.encode_text('{"a": 2, "total": 4}'), fmt.end_of_turn_id]):
        parsed = sdk.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Sum)
    assert parsed.choices[0].message.parsed == Sum(a=2, total=4)
    grammar = engine.seen[-1].sampling.grammar
    assert grammar is not None
    assert '"total"' in grammar


def test_tools_whole_and_through_the_streaming_helper(sdk: openai.OpenAI, engine: FakeEngine, fmt: ChatFormat) -> None:
    text = '{"name": "Weather", "arguments": {"city": "Rome"}}'
    tools = [openai.pydantic_function_tool(Weather)]
    with answering(engine, [fmt.tool_call_id, *fmt.encode_text(text), fmt.tool_call_end_id, fmt.end_of_turn_id]):
        whole = sdk.chat.completions.parse(model=MODEL, messages=QUESTION, tools=tools)
        with sdk.chat.completions.stream(model=MODEL, messages=QUESTION, tools=tools) as stream:
            kinds = {event.type for event in stream}
            streamed = stream.get_final_completion()
    for answer in (whole, streamed):
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.function.parsed_arguments == Weather(city="Rome")
    assert "tool_calls.function.arguments.delta" in kinds


def test_choices_logprobs_and_efforts(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL, messages=QUESTION, n=2, seed=3, logprobs=True, top_logprobs=2, reasoning_effort="low",
        max_completion_tokens=200,
    )  # fmt: skip
    assert [choice.message.content for choice in answer.choices] == ["It is 4."] * 2
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert "".join(entry.token for entry in logprobs.content or []) == "It is 4."
    assert {request.sampling.seed for request in engine.seen[-2:]} == {3, 4}


def test_text_completions(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model=MODEL, prompt=["Once", "Twice"], logprobs=1, echo=True)
    assert [choice.text for choice in answer.choices] == ["OnceIt is 4.", "TwiceIt is 4."]
    stream = sdk.completions.create(model=MODEL, prompt="Once", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "It is 4."


def test_models(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == [MODEL, f"{MODEL}:standard", f"{MODEL}:reasoning"]
    assert sdk.models.retrieve(MODEL).owned_by == "twogear"


def test_errors_are_the_sdks(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(model=MODEL, messages=QUESTION, extra_body={"reasoning_mode": "deep"})
    assert caught.value.param == "reasoning_mode"
    with pytest.raises(openai.NotFoundError):
        sdk.chat.completions.create(model="gpt-5", messages=QUESTION)
    engine.status = EngineStatus("lost", "", 0.0)
    try:
        with pytest.raises(openai.InternalServerError) as lost:
            sdk.chat.completions.create(model=MODEL, messages=QUESTION)
    finally:
        engine.status = EngineStatus("ready", "", 1.0)
    assert lost.value.status_code == 503


def test_an_error_in_a_stream_is_raised(sdk: openai.OpenAI, engine: FakeEngine) -> None:
    engine.fail_after = 2
    try:
        with pytest.raises(openai.APIError, match="ngine lost"):
            list(sdk.chat.completions.create(model=MODEL, messages=QUESTION, stream=True))
    finally:
        engine.fail_after = None

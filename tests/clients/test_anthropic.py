"""Anthropic's SDK: modes, streams, tools, structured answers, counting, models, errors."""

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, beta_tool
from anthropic.types import Message, MessageParam, ToolUseBlock

from chat_templates.format import ChatFormat
from server.modes.profile import Profile
from tests.clients import scenarios
from tests.clients.scenarios import GET_WEATHER, MODEL, REPLY, SUM, THOUGHT, WEATHER, Forecast
from tests.fake_engine import FakeEngine
from tests.scripted_server import LostAtFirst, app_of, serving

real = pytest.mark.engine
REASONING: list[dict[str, Any]] = [
    {"thinking": {"type": "adaptive"}},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"extra_body": {"reasoning_mode": "reasoning"}},
    {"model": f"{MODEL}:reasoning"},
]
TOOL: Any = {
    "name": "get_weather",
    "description": GET_WEATHER["function"]["description"],
    "input_schema": GET_WEATHER["function"]["parameters"],
}


def fields(text: str = SUM, **extra: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 400, **extra}


def sdk_of(url: str, **options: Any) -> Anthropic:
    return Anthropic(base_url=url.removesuffix("/v1"), api_key="none", **{"max_retries": 0, **options})


@pytest.fixture
def sdk(url: str) -> Iterator[Anthropic]:
    with sdk_of(url) as client:
        yield client


def thinking_tokens(message: Message) -> int:
    assert message.usage.output_tokens_details is not None
    return message.usage.output_tokens_details.thinking_tokens


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def thinking_of(message: Message) -> str:
    return "".join(block.thinking for block in message.content if block.type == "thinking")


@real
@pytest.mark.parametrize("how", REASONING)
def test_reasoning_mode(sdk: Anthropic, how: dict[str, Any]) -> None:
    message: Message = sdk.messages.create(**fields(**how))
    assert text_of(message)
    assert thinking_of(message)
    assert "</think>" not in text_of(message) + thinking_of(message)
    assert thinking_tokens(message) > 0


@real
@pytest.mark.parametrize("how", [{}, {"thinking": {"type": "disabled"}}, {"model": f"{MODEL}:standard"}])
def test_standard_mode(sdk: Anthropic, how: dict[str, Any]) -> None:
    message: Message = sdk.messages.create(**fields(**how))
    assert [block.type for block in message.content] == ["text"]
    assert (message.stop_reason, thinking_tokens(message)) == ("end_turn", 0)


@real
@pytest.mark.parametrize("thinking", ["disabled", "adaptive"])
def test_a_stream_is_the_message_in_parts(sdk: Anthropic, thinking: str) -> None:
    asked = fields(thinking={"type": thinking}, temperature=0)
    asked["extra_body"] = {"temperature": asked.pop("temperature")}  # the SDK has no such parameter any more
    whole: Message = sdk.messages.create(**asked)
    with sdk.messages.stream(**asked) as stream:
        seen = [(event.type, getattr(event, event.type, "")) for event in stream]
        streamed = stream.get_final_message()
    assert (text_of(streamed), thinking_of(streamed)) == (text_of(whole), thinking_of(whole))
    assert streamed.usage.output_tokens == whole.usage.output_tokens
    for kind, text in (("text", text_of(whole)), ("thinking", thinking_of(whole))):
        assert "".join(part for event, part in seen if event == kind) == text
    assert ("signature" in dict(seen)) == (thinking == "adaptive")


@real
def test_a_prompt_is_counted(sdk: Anthropic) -> None:
    asked = fields(system="Be brief.", tools=[TOOL])
    usage = sdk.messages.create(**asked).usage
    del asked["max_tokens"]
    counted = sdk.messages.count_tokens(**asked).input_tokens
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0)


@real
@pytest.mark.parametrize("how", [{}, {"thinking": {"type": "adaptive"}}])
def test_structured_answers(sdk: Anthropic, how: dict[str, Any]) -> None:
    message = sdk.messages.parse(**fields(WEATHER, **how), output_format=Forecast)
    assert isinstance(message.parsed_output, Forecast)
    assert (thinking_tokens(message) > 0) == bool(how)


@real
@pytest.mark.parametrize("how", [{}, {"thinking": {"type": "adaptive"}}])
def test_a_forced_call(sdk: Anthropic, how: dict[str, Any]) -> None:
    tool = {"name": "forecast", "input_schema": Forecast.model_json_schema()}
    choice = {"type": "tool", "name": "forecast"}
    message: Message = sdk.messages.create(**fields(WEATHER, tools=[tool], tool_choice=choice, **how))
    (call,) = (block for block in message.content if isinstance(block, ToolUseBlock))
    Forecast.model_validate(call.input)
    assert message.stop_reason == "tool_use"


@real
def test_a_stop_sequence(sdk: Anthropic) -> None:
    answer = text_of(sdk.messages.create(**fields()))
    message: Message = sdk.messages.create(**fields(stop_sequences=[answer[-1]]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", answer[-1])
    assert answer.startswith(text_of(message))


@real
def test_the_models(sdk: Anthropic) -> None:
    names = [model.id for model in sdk.models.list()]
    assert names == [MODEL, f"{MODEL}:standard", f"{MODEL}:reasoning"]
    assert (sdk.models.retrieve(MODEL).max_input_tokens or 0) > 1000


@pytest.mark.parametrize("thinking", ["disabled", "adaptive"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_tool_loop(weather_server: str, thinking: str, *, streaming: bool) -> None:
    messages: list[MessageParam] = [{"role": "user", "content": WEATHER}]
    asked: dict[str, Any] = {"tools": [TOOL], "thinking": {"type": thinking}, "extra_body": {"temperature": 0}}
    with sdk_of(weather_server) as sdk:

        def answered() -> Message:
            request = {**fields(), "messages": messages, **asked}
            if not streaming:
                message: Message = sdk.messages.create(**request)
                return message
            with sdk.messages.stream(**request) as stream:
                return stream.get_final_message()

        called = answered()
        (call,) = (block for block in called.content if isinstance(block, ToolUseBlock))
        assert (call.name, call.input, called.stop_reason) == ("get_weather", {"city": "Rome"}, "tool_use")
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": scenarios.get_weather("Rome")}
        messages += [called.to_param(), {"role": "user", "content": [result]}]
        answer = answered()
    assert (text_of(answer), answer.stop_reason) == (REPLY, "end_turn")


def test_the_sdks_own_tool_loop(scripted: str) -> None:
    @beta_tool
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        return scenarios.get_weather(city)

    with sdk_of(scripted) as sdk:
        answer = sdk.beta.messages.tool_runner(**fields(WEATHER), tools=[get_weather]).until_done()
    assert [block.text for block in answer.content if block.type == "text"] == [REPLY]


def test_its_tool_loop_sends_the_whole_conversation(profile: Profile, fmt: ChatFormat) -> None:
    """It asks for a thread first: told that there are none, it leaves nothing out."""
    engine = FakeEngine(scenarios.weather_script(fmt), (fmt.end_of_turn_id,))

    @beta_tool
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        return scenarios.get_weather(city)

    with serving(app_of(engine, profile, fmt)) as url, sdk_of(url) as sdk:
        sdk.beta.messages.tool_runner(**fields(WEATHER), tools=[get_weather]).until_done()
    first, second = (request.prompt_ids for request in engine.seen)
    assert second[: len(first)] == first


def test_thinking_that_is_left_out_comes_back(scripted: str) -> None:
    asked = fields(WEATHER, thinking={"type": "adaptive", "display": "omitted"}, tools=[TOOL])
    with sdk_of(scripted) as sdk:
        called: Message = sdk.messages.create(**asked)
        (thinking,) = (block for block in called.content if block.type == "thinking")
        assert (thinking.thinking, len(thinking.signature) > len(THOUGHT)) == ("", True)
        messages = [*asked["messages"], called.to_param(), {"role": "user", "content": "So?"}]
        assert sdk.messages.count_tokens(model=MODEL, messages=messages).input_tokens > 0


@real
def test_errors(sdk: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="reasoning_mode must be") as caught:
        sdk.messages.create(**fields(extra_body={"reasoning_mode": "deep"}))
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        sdk.messages.create(**fields(model="claude-other"))
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        sdk.messages.create(**fields("9 " * 140_000))
    with (
        pytest.raises(anthropic.BadRequestError, match="must be a block"),
        sdk.messages.stream(
            **fields([{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/"}}])  # type: ignore[arg-type]
        ),
    ):
        pass


def test_it_comes_back_when_it_is_told(faltering: tuple[str, LostAtFirst]) -> None:
    at, app = faltering
    before = app.refused
    app.lose()
    with sdk_of(at, max_retries=1) as sdk:
        assert sdk.messages.create(**fields(WEATHER)).content
    assert app.refused == before + 1
    app.lose()
    with sdk_of(at) as sdk, pytest.raises(anthropic.InternalServerError, match="overloaded_error"):
        sdk.messages.create(**fields(WEATHER))

"""The HTTP surface around a scripted engine: both modes, routes, health, metrics, and errors in one shape."""

from typing import Any, Literal

import httpx
import pytest
from msgspec.structs import replace

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from engine.messages import PageGroup, Stats
from server.app import create_app
from server.engine_client import EngineStatus
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine, Script, script_of
from tests.server.conftest import HELLO, MODEL, Client, body
from tests.styles import thinking_of

CHAT = "/v1/chat/completions"


@pytest.fixture
def thinker(fmt: ChatFormat) -> Script:
    """Thinks "let me see" where thinking is open, and answers "forty é"."""
    answer = [*fmt.encode_text("forty é"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("let me see"), *fmt.close_thinking()]
    return lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer)


@pytest.fixture
def engine(fmt: ChatFormat, thinker: Script) -> FakeEngine:
    return FakeEngine(thinker, (fmt.end_of_turn_id,), chunks=(2, 1))


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object, whose shape is checked."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    return dict(error)


async def test_standard_mode_answers_at_once(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body())
    result = response.json()
    (choice,) = result["choices"]
    assert choice["message"] == {"role": "assistant", "content": "forty é", "refusal": None}
    assert (choice["finish_reason"], "reasoning_finish_reason" in choice) == ("stop", False)
    (request,) = engine.seen
    assert request.prompt_ids == fmt.render(HELLO, DIRECT)
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.max_tokens) == (0.0, 1.0, 256)
    answer_tokens = len(fmt.encode_text("forty é")) + 1
    assert result["usage"] == {
        "prompt_tokens": len(request.prompt_ids),
        "completion_tokens": answer_tokens,
        "total_tokens": len(request.prompt_ids) + answer_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


@pytest.mark.parametrize("fields", [{"reasoning_mode": "reasoning"}, {"model": f"{MODEL}:reasoning"}])
async def test_reasoning_mode_thinks_first(
    client: Client, engine: FakeEngine, fmt: ChatFormat, fields: dict[str, str]
) -> None:
    async with client(engine) as http:
        result = (await http.post(CHAT, json=body(**fields))).json()
    (choice,) = result["choices"]
    assert choice["message"]["content"] == "forty é"
    assert choice["message"]["reasoning_content"] == choice["message"]["reasoning"] == "let me see"
    assert choice["reasoning_finish_reason"] == "natural"
    (request,) = engine.seen
    assert request.prompt_ids == fmt.render(HELLO, THINKING)
    assert (request.sampling.temperature, request.sampling.top_p) == (0.6, 0.95)
    assert request.sampling.max_tokens == 4096 - len(request.prompt_ids)
    assert result["model"] == MODEL
    details = result["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == len(fmt.encode_text("let me see")) + len(fmt.encode_text("\n"))


async def test_explicit_fields_win_over_the_modes(client: Client, engine: FakeEngine) -> None:
    fields = {
        "temperature": 0.3, "top_p": 0.4, "top_k": 5, "min_p": 0.1, "presence_penalty": 1.5, "frequency_penalty": -1,
        "repetition_penalty": 1.1, "seed": 7, "max_tokens": 50, "ignore_eos": True,
    }  # fmt: skip
    async with client(engine) as http:
        asked = body(**fields, logit_bias={"5": -100}, reasoning_mode="reasoning")
        response = await http.post(CHAT, json=asked)
    assert response.status_code == 200
    sampling = engine.seen[0].sampling
    assert {name: getattr(sampling, name) for name in fields} == fields
    assert sampling.logit_bias == {5: -100}


async def test_a_profile_may_draw_the_answer_differently(engine: FakeEngine, fmt: ChatFormat, profile: Profile) -> None:
    reasoning = replace(thinking_of(profile), answer={"temperature": 0.0, "top_p": 1.0})
    own = replace(profile, modes={**profile.modes, "reasoning": reasoning})
    app = create_app(engine, Settings(), own, fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        await http.post(CHAT, json=body(reasoning_mode="reasoning"))
        await http.post(CHAT, json=body(reasoning_mode="reasoning", temperature=0.9))
    drawn = [(request.sampling.temperature, request.sampling.top_p) for request in engine.seen]
    assert drawn == [(0.6, 0.95), (0.0, 1.0), (0.9, 0.95), (0.9, 1.0)]


async def test_a_budget_bounds_the_thinking_and_the_wrap_up_is_not_shown(
    client: Client, engine: FakeEngine, fmt: ChatFormat
) -> None:
    async with client(engine) as http:
        result = (await http.post(CHAT, json=body(reasoning_mode="reasoning", thinking_token_budget=4))).json()
    (choice,) = result["choices"]
    shown = fmt.decode(fmt.encode_text("let me see")[:3])
    assert choice["message"]["reasoning_content"] == shown
    assert choice["message"]["content"] == "forty é"
    assert choice["reasoning_finish_reason"] == "budget"
    assert result["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


@pytest.mark.parametrize(("budget", "said"), [(40, 0), (12, 1), (2, 2)])
async def test_the_longest_wrap_up_is_said_that_takes_at_most_half_of_the_budget(
    client: Client, fmt: ChatFormat, profile: Profile, budget: int, said: int
) -> None:
    words = [fmt.closing(text).last_words for text in thinking_of(profile).wrap_ups]
    assert len(words[1]) <= 6 < len(words[0]) <= 20
    thought = fmt.encode_text("let me see " * 20)
    engine = FakeEngine(script_of(thought, len(fmt.render(HELLO, THINKING))), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        asked = body(reasoning_mode="reasoning", thinking_token_budget=budget, max_tokens=100)
        result = (await http.post(CHAT, json=asked)).json()
    shown = thought[: budget - len(words[said])]
    assert result["choices"][0]["message"]["reasoning_content"] == fmt.decode(shown)
    assert result["usage"]["completion_tokens_details"]["reasoning_tokens"] == budget
    prompt = engine.seen[-1].prompt_ids
    assert prompt[len(fmt.render(HELLO, THINKING)) :] == [
        *shown,
        *fmt.close_thinking(thinking_of(profile).wrap_ups[said]),
    ]


async def test_a_budget_that_ends_within_a_character_loses_nothing(client: Client, fmt: ChatFormat) -> None:
    emoji = fmt.encode_text("😀")
    assert len(emoji) > 2
    script = script_of([*fmt.encode_text("a"), *emoji, *emoji], len(fmt.render(HELLO, THINKING)))
    async with client(FakeEngine(script, (fmt.end_of_turn_id,))) as http:
        asked = body(reasoning_mode="reasoning", thinking_token_budget=4, max_tokens=20)
        result = (await http.post(CHAT, json=asked)).json()
    assert result["choices"][0]["message"]["reasoning_content"] == "a\ufffd"
    assert result["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


async def test_stop_strings_cut_the_answer_but_not_the_thinking(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        result = (await http.post(CHAT, json=body(reasoning_mode="reasoning", stop=["ty", "see"]))).json()
    (choice,) = result["choices"]
    assert choice["message"]["reasoning_content"] == "let me see"
    assert (choice["message"]["content"], choice["finish_reason"]) == ("for", "stop")
    assert len(engine.aborted) == 1


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"reasoning_mode": "deep"}, "reasoning_mode"),
        ({"reasoning_mode": 1}, "reasoning_mode"),
        ({"reasonning_mode": "reasoning"}, "reasonning_mode"),
        ({"reasoningMode": "reasoning"}, "reasoningMode"),
        ({"thinking_tokens_budget": 3}, "thinking_tokens_budget"),
        ({"topk": 3}, "topk"),
        ({"model": f"{MODEL}:standard", "reasoning_mode": "reasoning"}, "reasoning_mode"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"thinking_token_budget": -2}, "thinking_token_budget"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": 1}, "stop"),
        ({"stop_token_ids": [10**6]}, "stop_token_ids"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1000000": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"min_tokens": 300}, "min_tokens"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 0}, "n"),
        ({"n": 10_000}, "n"),
        ({"n": "2"}, "n"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning_logprobs": True}, "reasoning_logprobs"),
        ({"logprobs": True, "reasoning_logprobs": "yes"}, "reasoning_logprobs"),
        ({"reasoning_logprob": True}, "reasoning_logprob"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"priority": 1}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"priority": 2**31}, "priority"),
        ({"continue_final_message": True}, "messages[0].role"),
        ({"continue_final_message": 1}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"add_generation_prompt": "no"}, "add_generation_prompt"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"reasoning_effort": "most"}, "reasoning_effort"),
        ({"reasoning_effort": 3}, "reasoning_effort"),
        ({"reasoning": True}, "reasoning"),
        ({"reasoning": {"enabled": "yes"}}, "reasoning.enabled"),
        ({"reasoning": {"max_tokens": -2}}, "reasoning.max_tokens"),
        ({"reasoning": {"effort": "some"}}, "reasoning.effort"),
        ({"reasoning": {"exclude": 1}}, "reasoning.exclude"),
        ({"thinking": {}}, "thinking.type"),
        ({"thinking": {"type": "some"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1.5}}, "thinking.budget_tokens"),
        ({"chat_template_kwargs": {"enable_thinking": "true"}}, "chat_template_kwargs.enable_thinking"),
    ],
)
async def test_a_bad_field_is_named(client: Client, engine: FakeEngine, fields: dict[str, Any], param: str) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
    error = error_of(response)
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert "\n" not in error["message"]
    assert not engine.seen


async def test_a_misspelt_extension_is_told_what_was_meant(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(reasonning_mode="reasoning"))
    assert '"reasoning_mode"' in error_of(response)["message"]


async def test_a_contradiction_names_both_fields(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(model=f"{MODEL}:standard", reasoning_mode="reasoning"))
    message = error_of(response)["message"]
    assert "model asks" in message
    assert "reasoning_mode" in message


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "metadata": {}, "store": False, "some_field_of_tomorrow": [1]},
        {"tools": [], "n": 1, "logprobs": False, "response_format": {"type": "text"}, "tool_choice": "auto"},
        {"temperature": None, "stop": None, "stream": None, "max_tokens": None, "reasoning_mode": None, "tools": None},
        {"model": None},
        {"max_tokens": 9, "max_completion_tokens": 9},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}]}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b", "tool_call_id": "c"}]},
        {"messages": [{"role": "assistant", "content": None}, {"role": "user", "content": "", "name": "me"}]},
    ],
)  # fmt: skip
async def test_unknown_and_neutral_fields_are_accepted(
    client: Client, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"messages": NaN}', b'{"a": "\\ud800"}', b"[" * 100_000, b'{"a":' * 2000],
)
async def test_a_body_that_is_no_json_object(client: Client, engine: FakeEngine, content: bytes) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, content=content)
    assert (response.status_code, error_of(response)["type"]) == (400, "invalid_request_error")


async def test_a_body_that_is_too_large(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, content=b" " * (Settings().max_body_bytes + 1))
    assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


async def test_a_prompt_that_is_too_long(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(messages=[{"role": "user", "content": "7 " * 100_000}]))
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "4096" in error["message"]


async def test_unknown_models_routes_and_methods(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        unknown = await http.post(CHAT, json=body(model="gpt-5"))
        listed = await http.get("/v1/models/gpt-5")
        route = await http.get("/v1/nope")
        method = await http.get(CHAT)
    assert [response.status_code for response in (unknown, listed, route, method)] == [404, 404, 404, 405]
    assert error_of(unknown)["code"] == error_of(listed)["code"] == "model_not_found"
    assert "/v1/nope" in error_of(route)["message"]
    assert method.headers["allow"] == "POST"
    error_of(method)


async def test_models_are_listed_with_their_aliases(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        listed = (await http.get("/v1/models")).json()
        one = (await http.get(f"/v1/models/{MODEL}:reasoning")).json()
    assert [model["id"] for model in listed["data"]] == [MODEL, f"{MODEL}:standard", f"{MODEL}:reasoning"]
    assert one == listed["data"][2]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (EngineStatus("loading", "loading the weights", 0.25), "25%: loading the weights"),
        (EngineStatus("lost", "SIGKILL", 0.0), "ngine lost: SIGKILL"),
    ],
)
async def test_without_an_engine_requests_and_health_are_503(
    client: Client, engine: FakeEngine, status: EngineStatus, told: str
) -> None:
    engine.status = status
    async with client(engine) as http:
        for response in (await http.post(CHAT, json=body()), await http.get("/health")):
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
            assert told in error_of(response)["message"]
        assert response.json()["progress"] == status.fraction
        assert (await http.get("/live")).status_code == 200
        engine.status = EngineStatus("ready", "", 1.0)
        assert (await http.get("/health")).json() == {"status": "ok"}


async def test_live_says_that_the_process_answers_whatever_the_engine_does(
    client: Client, engine: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    """A probe of it restarts a server that hangs, not one that loads, waits for an engine, or finishes what runs."""
    app = create_app(engine, Settings(), profile, fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:

        async def told() -> tuple[int, int]:
            return (await http.get("/live")).status_code, (await http.get("/health")).status_code

        assert await told() == (200, 200)
        states: tuple[Literal["loading", "lost", "closed"], ...] = ("loading", "lost", "closed")
        for state in states:
            engine.status = EngineStatus(state, "", 0.0)
            assert await told() == (200, 503)
        engine.status = EngineStatus("ready", "", 1.0)
        assert await told() == (200, 200)
        app.state.serving.draining = True
        assert await told() == (200, 503)
        assert (await http.get("/live")).json() == {"status": "alive"}


async def test_an_engine_that_refuses_or_dies(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        engine.refuse = "no such token"
        refused = await http.post(CHAT, json=body())
        engine.refuse, engine.fail_after = None, 0
        died = [await http.post(CHAT, json=body(stream=stream)) for stream in (False, True)]
    assert (refused.status_code, error_of(refused)["message"]) == (400, "no such token")
    for response in died:
        assert response.status_code == 503
        assert error_of(response)["type"] == "service_unavailable_error"


async def test_metrics_tell_the_engines_load_as_vllm_does(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        idle = set((await http.get("/metrics")).text.splitlines())
        engine.stats = Stats(2, 1, (PageGroup("sliding", 32, 3, 5, 8), PageGroup("global", 32, 7, 1, 8)))
        busy = set((await http.get("/metrics")).text.splitlines())
    labels = f'{{engine="0",model_name="{MODEL}"}}'
    assert {f"vllm:num_requests_running{labels} 0.0", f"vllm:num_requests_waiting{labels} 0.0"} <= idle
    assert {f"vllm:num_requests_running{labels} 2.0", f"vllm:num_requests_waiting{labels} 1.0"} <= busy
    assert f"vllm:kv_cache_usage_perc{labels} {10 / 24}" in busy


async def test_metrics_tell_the_engines_state_and_restarts(client: Client, engine: FakeEngine) -> None:
    engine.restarts = {"hang": 2}
    engine.status = EngineStatus("lost", "the engine hung", 0.0)
    async with client(engine) as http:
        lines = set((await http.get("/metrics")).text.splitlines())
    assert {'twogear_engine_state{state="lost"} 1.0', 'twogear_engine_state{state="ready"} 0.0'} <= lines
    causes = {"crash": 0, "killed": 0, "error": 0, "hang": 2, "protocol": 0}
    assert {f'twogear_engine_restarts_total{{cause="{cause}"}} {n}.0' for cause, n in causes.items()} <= lines
    assert {f'twogear_engine_places{{lane="{lane}",state="held"}} 0.0' for lane in ("answer", "think")} <= lines


async def test_metrics_count_requests_and_tokens(client: Client, engine: FakeEngine, fmt: ChatFormat) -> None:
    async with client(engine) as http:
        await http.post(CHAT, json=body())
        await http.post(CHAT, json=body(reasoning_mode="reasoning", stream=True))
        await http.post(CHAT, json=body(reasoning_mode="deep"))
        text = (await http.get("/metrics")).text
    lines = set(text.splitlines())
    assert 'twogear_requests_total{mode="standard",outcome="completed"} 1.0' in lines
    assert 'twogear_requests_total{mode="unknown",outcome="rejected"} 1.0' in lines
    assert 'twogear_reasoning_finish_total{how="natural"} 1.0' in lines
    assert 'twogear_kv_pages{group="sliding",state="free"} 3.0' in lines
    assert 'twogear_requests_running{mode="reasoning"} 0.0' in lines
    reasoning = len(fmt.encode_text("let me see")) + 1
    assert f'twogear_tokens_total{{kind="reasoning",mode="reasoning"}} {reasoning}.0' in lines
    for name in (
        "time_to_first_token", "time_to_first_answer_token", "time_per_output_token", "request",
    ):  # fmt: skip
        assert f'twogear_{name}_seconds_count{{mode="reasoning"}} 1.0' in lines


async def test_version_and_documentation(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        assert (await http.get("/version")).json()["engine"] == "fake"
        assert (await http.get("/docs")).status_code == 200
        document = (await http.get("/openapi.json")).json()
    schema = document["components"]["schemas"]["ChatRequest"]
    assert {"messages", "reasoning_mode", "thinking_token_budget", "stream_options"} <= set(schema["properties"])

"""Fields of vLLM's and llama.cpp's APIs beside the modes: sampling, stops, log-probabilities, usage, control."""

from typing import Any, get_type_hints

import httpx
import orjson
import pytest
from anthropic.types.beta.message_create_params import MessageCreateParamsNonStreaming as BetaMessageNonStreaming
from anthropic.types.beta.message_create_params import MessageCreateParamsStreaming as BetaMessageStreaming
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming as MessageNonStreaming
from anthropic.types.message_create_params import MessageCreateParamsStreaming as MessageStreaming
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming as ChatNonStreaming
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as ChatStreaming
from openai.types.responses import ResponseCompactParams
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming as ResponseNonStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming as ResponseStreaming
from pydantic import BaseModel

from chat_templates.format import ChatFormat
from server.api.chat.body import ChatRequest
from server.api.common.refused import RETIRED, UNSUPPORTED
from server.api.completions import body as completions
from server.api.completions.body import CompletionRequest
from server.api.messages.body import MessagesRequest
from server.api.responses.body import MOVED, ResponseRequest
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import MODEL, Client, always, body

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def writer(fmt: ChatFormat, *parts: str | int) -> FakeEngine:
    """Writes texts and tokens, then ends its turn."""
    ids = [token for part in parts for token in ([part] if isinstance(part, int) else fmt.encode_text(part))]
    return FakeEngine(always([*ids, fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


async def post(client: Client, engine: FakeEngine, path: str = CHAT, **fields: Any) -> dict[str, Any]:
    asked = body(**fields) if path == CHAT else {"model": MODEL, "prompt": "ab", **fields}
    async with client(engine) as http:
        response = await http.post(path, json=asked)
    assert response.status_code == 200, response.text
    return dict(response.json())


def events_of(text: str) -> list[dict[str, Any]]:
    return [orjson.loads(line[6:]) for line in text.split("\n\n") if line and line != "data: [DONE]"]


async def test_tokens_that_may_or_may_not_be_drawn_reach_the_engine(client: Client, fmt: ChatFormat) -> None:
    engine = writer(fmt, "a")
    await post(client, engine, allowed_token_ids=[40, 41], bad_words=["the"])
    sampling = engine.seen[0].sampling
    assert sampling.allowed_token_ids == (40, 41)
    assert tuple(fmt.encode_text("the")) in sampling.bad_words
    assert tuple(fmt.encode_text(" the")) in sampling.bad_words or len(fmt.encode_text(" the")) != len(
        fmt.encode_text("the")
    )


@pytest.mark.parametrize(("field", "value"), [("allowed_token_ids", [10**6]), ("allowed_token_ids", [])])
async def test_tokens_that_there_are_not_are_refused(client: Client, fmt: ChatFormat, field: str, value: Any) -> None:
    async with client(writer(fmt, "a")) as http:
        response = await http.post(CHAT, json=body(**{field: value}))
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_stop_reason_and_the_stop_string_in_the_text(client: Client, fmt: ChatFormat, path: str) -> None:
    def text_of(result: dict[str, Any]) -> str:
        choice = result["choices"][0]
        return str(choice["message"]["content"] if path == CHAT else choice["text"])

    plain = await post(client, writer(fmt, "one two"), path, stop=[" t"])
    shown = await post(client, writer(fmt, "one two"), path, stop=[" t"], include_stop_str_in_output=True)
    none = await post(client, writer(fmt, "one two"), path)
    assert (text_of(plain), plain["choices"][0]["stop_reason"]) == ("one", " t")
    assert (text_of(shown), shown["choices"][0]["stop_reason"]) == ("one t", " t")
    assert (text_of(none), none["choices"][0]["stop_reason"]) == ("one two", None)
    assert none["choices"][0]["finish_reason"] == plain["choices"][0]["finish_reason"] == "stop"


async def test_a_stop_token_is_told_and_shown(client: Client, fmt: ChatFormat) -> None:
    (first, last) = fmt.encode_text("a")[0], fmt.encode_text("z")[0]
    for shows, text in ((False, "a"), (True, "az")):
        result = await post(
            client, writer(fmt, first, last, "b"), stop_token_ids=[last], include_stop_str_in_output=shows
        )
        choice = result["choices"][0]
        assert (choice["message"]["content"], choice["stop_reason"], choice["finish_reason"]) == (text, last, "stop")


async def test_a_newline_that_is_a_stop_string_costs_no_further_token(client: Client, fmt: ChatFormat) -> None:
    newline = fmt.encode_text("a\nb")[1]
    assert fmt.decode([newline]) == "\n"
    for stop in ("\n", "a\n"):
        result = await post(client, writer(fmt, *fmt.encode_text("a\nb")), stop=stop)
        assert result["choices"][0]["message"]["content"] == ("a" if stop == "\n" else "")
        assert result["usage"]["completion_tokens"] == 2


async def test_stop_strings_before_min_tokens_do_not_count(client: Client, fmt: ChatFormat) -> None:
    ids = fmt.encode_text("x.y.z")
    assert len(ids) == 5
    result = await post(client, writer(fmt, *ids), stop=".", min_tokens=3)
    assert result["choices"][0]["message"]["content"] == "x.y"
    assert result["usage"]["completion_tokens"] == 4


async def test_control_tokens_are_shown_where_they_are_asked_for(client: Client, fmt: ChatFormat) -> None:
    parts = ("a", fmt.think_end_id, "b", fmt.vocabulary.control["[|user|]"], "c")
    hidden = await post(client, writer(fmt, *parts), TEXT)
    shown = await post(client, writer(fmt, *parts), TEXT, skip_special_tokens=False, logprobs=0)
    assert hidden["choices"][0]["text"] == "a</think>bc"
    assert shown["choices"][0]["text"] == "a</think>b[|user|]c"
    assert "".join(shown["choices"][0]["logprobs"]["tokens"]) == "a</think>b[|user|]c"
    chat = await post(client, writer(fmt, *parts), skip_special_tokens=False)
    assert chat["choices"][0]["message"]["content"] == "a</think>b[|user|]c"


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_prompt_logprobs(client: Client, fmt: ChatFormat, path: str) -> None:
    result = await post(client, writer(fmt, "a"), path, prompt_logprobs=2, return_token_ids=True)
    choice = result["choices"][0]
    places = (result if path == CHAT else choice)["prompt_logprobs"]
    prompt = (result if path == CHAT else choice)["prompt_token_ids"]
    assert places[0] is None
    assert len(places) == len(prompt)
    for token_id, place in zip(prompt[1:], places[1:], strict=True):
        own = place[str(token_id)]
        assert (own["rank"], own["decoded_token"]) == (1, fmt.vocabulary.token_bytes(token_id).decode(errors="replace"))
        assert len(place) == 2
    async with client(writer(fmt, "a")) as http:
        asked = (
            body(prompt_logprobs=1, stream=True)
            if path == CHAT
            else {"prompt": "a", "prompt_logprobs": 1, "stream": True}
        )
        response = await http.post(path, json=asked)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt_logprobs")


async def test_logprobs_by_token_ids(client: Client, fmt: ChatFormat) -> None:
    ids = fmt.encode_text("ab")
    result = await post(client, writer(fmt, *ids), logprobs=True, top_logprobs=1, return_tokens_as_token_ids=True)
    entries = result["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == [f"token_id:{token_id}" for token_id in ids]
    assert entries[0]["top_logprobs"][0]["token"] == f"token_id:{ids[0]}"
    assert bytes(entries[0]["bytes"]) == fmt.vocabulary.token_bytes(ids[0])


async def test_text_offsets_count_characters_and_not_tokens(client: Client, fmt: ChatFormat) -> None:
    text = "ab é😀한 cd"
    result = await post(client, writer(fmt, "x"), TEXT, prompt=text, echo=True, logprobs=0, max_tokens=0)
    lists = result["choices"][0]["logprobs"]
    place = 0
    for token_id, offset in zip(fmt.encode_text(text), lists["text_offset"], strict=True):
        data = fmt.vocabulary.token_bytes(token_id)
        assert offset == len(text.encode()[:place].decode(errors="ignore"))
        place += len(data)
    assert lists["text_offset"][lists["tokens"].index("c")] == text.index("c") == 7


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_usage_in_every_event(client: Client, fmt: ChatFormat, path: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    asked = body(stream=True, stream_options=options)
    if path == TEXT:
        asked = {"prompt": "a", "stream": True, "stream_options": options}
    async with client(writer(fmt, "one two three")) as http:
        events = events_of((await http.post(path, json=asked)).text)
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    assert events[-1]["choices"] == []


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_thinking_under_one_name(fmt: ChatFormat, profile: Profile, field: str, stream: bool) -> None:
    ids = [*fmt.encode_text("so"), *fmt.close_thinking(), *fmt.encode_text("a"), fmt.end_of_turn_id]
    engine = FakeEngine(always(ids), (fmt.end_of_turn_id,))
    app = create_app(engine, Settings(reasoning_fields=(field,)), profile, fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        asked = body(reasoning_mode="reasoning", max_tokens=300, stream=stream)
        text = (await http.post(CHAT, json=asked)).text
    assert text.count('"reasoning":"so"') == (field == "reasoning")
    assert text.count('"reasoning_content":"so"') == (field == "reasoning_content")


async def test_the_models_root(client: Client, fmt: ChatFormat) -> None:
    async with client(writer(fmt, "a")) as http:
        models = (await http.get("/v1/models")).json()["data"]
    assert {model["root"] for model in models} == {MODEL}


async def test_control_as_llama_cpp_has_it(client: Client, fmt: ChatFormat) -> None:
    async with client(writer(fmt, "a")) as http:
        response = await http.post(f"{CHAT}/control", json={"id": "chatcmpl-x", "action": "reasoning_end"})
        bad = await http.post(f"{CHAT}/control", json={"action": "reasoning_end"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "request_not_found")
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "id")


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/version", "/metrics", f"/v1/models/{MODEL}"])
async def test_head_is_answered_as_get(client: Client, fmt: ChatFormat, path: str) -> None:
    async with client(writer(fmt, "a")) as http:
        head, whole = await http.head(path), await http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


async def test_a_path_that_there_is_not_names_those_that_there_are(client: Client, fmt: ChatFormat) -> None:
    async with client(writer(fmt, "a")) as http:
        for path in ("/v1/chat", "/v1/v1/chat/completions", "/chat/completions"):
            response = await http.post(path, json={})
            assert response.status_code == 404
            assert "POST /v1/chat/completions" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_no_character_in_an_event_ends_a_line(client: Client, fmt: ChatFormat, path: str) -> None:
    text = "a\u2028b\u2029c\u0085d"
    asked = body(stream=True) if path == CHAT else {"prompt": "a", "stream": True}
    async with client(writer(fmt, text)) as http:
        raw = (await http.post(path, json=asked)).text
    assert all(line.startswith("data: ") for line in raw.splitlines() if line)
    parts = [event["choices"][0] for event in events_of(raw)]
    assert "".join((part["delta"].get("content") or "") if path == CHAT else part["text"] for part in parts) == text


async def test_a_limit_beyond_the_context_has_its_code(client: Client, fmt: ChatFormat) -> None:
    async with client(writer(fmt, "a")) as http:
        for limit in (5000, 10**6):
            error = (await http.post(CHAT, json=body(max_tokens=limit))).json()["error"]
            assert error["code"] == "context_length_exceeded"
            assert ("4096" if limit == 5000 else "131072") in error["message"]


BODIES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    CHAT: (ChatRequest, body()),
    TEXT: (CompletionRequest, {"prompt": "a"}),
    "/v1/responses": (ResponseRequest, {"model": MODEL, "input": "Hi"}),
    "/v1/messages": (MessagesRequest, body(max_tokens=9)),
}
APART: dict[str, set[str]] = {
    CHAT: set(),
    TEXT: {*completions.CHAT_ONLY, *completions.IDLE},
    "/v1/responses": {*MOVED},
    "/v1/messages": set(),
}
"""Fields of the others with words of their own, or that ask for nothing."""
HARMLESS = {
    *("messages", "model", "stream", "stream_options", "tools", "tool_choice", "echo", "best_of", "max_tokens"),
    *("cache_control", "cache_salt", "metadata", "service_tier", "prompt_cache_key", "safety_identifier", "user"),
    *("store", "max_tool_calls", "temperature", "top_p", "top_k", "reasoning_mode", "thinking"),
    "thinking_token_budget",
}
"""Fields of our own APIs that all have, or that ask for nothing where one does not have them."""


def test_each_field_of_our_own_is_known_to_the_other_apis() -> None:
    """What one of them takes, none of the others ignores in silence."""
    every = {name for kind, _ in BODIES.values() for name in kind.model_fields}
    for path, (kind, _) in BODIES.items():
        known = {*kind.model_fields, *UNSUPPORTED, *APART[path], *HARMLESS}
        assert not sorted(every - known), path


OF_SDKS: dict[str, list[Any]] = {
    CHAT: [ChatNonStreaming, ChatStreaming],
    "/v1/responses": [ResponseNonStreaming, ResponseStreaming, ResponseCompactParams],
    "/v1/messages": [MessageNonStreaming, MessageStreaming, BetaMessageNonStreaming, BetaMessageStreaming],
}
IDLE_OF_SDKS = {
    *("prediction", "verbosity", "prompt_cache_options", "prompt_cache_retention"),  # of OpenAI's caches and models
    *("access_programs", "background_options", "image"),  # of OpenAI's plans, queues and images
    *("inference_geo", "speed", "diagnostics", "fallbacks", "fallback_credit_token", "billing_policy", "betas"),
    *("user_profile_id", "workspace_id"),  # of Anthropic's machines, prices and accounts
}
"""Fields that ask for nothing that a server of one model has."""


@pytest.mark.parametrize("path", OF_SDKS)
def test_each_field_of_the_newest_sdks_is_known(path: str) -> None:
    """Taken, refused by name, or known to ask for nothing here: an upgrade that brings another fails until it is."""
    (kind, _), sent = BODIES[path], {name for params in OF_SDKS[path] for name in get_type_hints(params)}
    known = {*kind.model_fields, *UNSUPPORTED, *RETIRED, *APART[path], *HARMLESS, *IDLE_OF_SDKS}
    assert len(sent) > 10
    assert not sorted(sent - known)


@pytest.mark.parametrize("path", BODIES)
async def test_retired_fields_are_refused_in_every_api(client: Client, fmt: ChatFormat, path: str) -> None:
    """With a field of that API to use instead."""
    kind, asked = BODIES[path]
    async with client(writer(fmt, "a")) as http:
        for name in RETIRED:
            error = (await http.post(path, json={**asked, name: {"type": "object"}})).json()["error"]
            instead = error["message"].removeprefix(f"{name} is not supported: use ").removesuffix(".")
            assert instead.split(".")[0] in {*kind.model_fields, *APART[path]}, error
            assert (await http.post(path, json={**asked, name: None})).status_code == 200


async def test_the_sdks_idle_fields_are_taken(client: Client, fmt: ChatFormat) -> None:
    async with client(writer(fmt, "a")) as http:
        for path, fields in {
            CHAT: {
                "verbosity": "low",
                "prompt_cache_key": "a",
                "prompt_cache_retention": "24h",
                "store": True,
                "safety_identifier": "a",
                "service_tier": "flex",
                "metadata": {"a": "b"},
                "user": "u",
                "stream": True,
                "stream_options": {"include_obfuscation": True},
            },
            "/v1/responses": {
                "text": {"verbosity": "low"},
                "prompt_cache_key": "a",
                "prompt_cache_retention": "in_memory",
                "safety_identifier": "a",
                "service_tier": "auto",
                "max_tool_calls": 3,
                "metadata": {"a": "b"},
                "stream": True,
                "stream_options": {"include_obfuscation": False},
                "image": {},
            },
            "/v1/messages": {
                "cache_control": {"type": "ephemeral"},
                "service_tier": "auto",
                "metadata": {"user_id": "u"},
                "context_management": {"edits": []},
                "speed": "fast",
                "inference_geo": "eu",
                "max_tokens": 9,
            },
        }.items():
            response = await http.post(path, json={**BODIES[path][1], **fields})
            assert response.status_code == 200, response.text


async def test_counting_refuses_what_a_message_refuses(client: Client, fmt: ChatFormat) -> None:
    async with client(writer(fmt, "a")) as http:
        asked = body(enable_thinking=True)
        response = await http.post("/v1/messages/count_tokens", json=asked)
        assert (response.status_code, "use thinking" in response.text) == (400, True)
        same = await http.post("/v1/messages/count_tokens", json=body(max_tokens=5, stop_sequences=["a"], top_p=0))
        assert same.status_code == 200


async def test_messages_take_no_bound_and_greedy_as_the_others_do(client: Client, fmt: ChatFormat) -> None:
    engine = writer(fmt, "a")
    async with client(engine) as http:
        fields = {"max_tokens": 9, "thinking_token_budget": -1, "top_p": 0, "temperature": 1, "top_k": -1}
        response = await http.post("/v1/messages", json=body(**fields))
    assert response.status_code == 200, response.text
    sampling = engine.seen[0].sampling
    assert (sampling.temperature, sampling.top_p) == (0.0, 1.0)


@pytest.mark.parametrize("path", BODIES)
async def test_what_others_have_and_we_do_not_is_refused_unless_it_is_off(
    client: Client, fmt: ChatFormat, path: str
) -> None:
    """The field to use instead, which the error names, is one of the same API's."""
    kind, asked = BODIES[path]
    async with client(writer(fmt, "a")) as http:
        for name, (off, _) in UNSUPPORTED.items():
            if name in kind.model_fields or name in APART[path]:
                continue
            for value in (None, *off):
                response = await http.post(path, json={**asked, name: value})
                assert response.status_code == 200, (name, value, response.text)
            response = await http.post(path, json={**asked, name: [["on"]]})
            message = response.json()["error"]["message"]
            assert response.status_code == 400, name
            head, _, way = message.partition(" is not supported here, and would change the result: ")
            assert head == name, message
            assert way == "leave it out." or way.removeprefix("use ").split(".")[0] in kind.model_fields, message

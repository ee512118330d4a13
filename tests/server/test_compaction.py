"""`/v1/responses/compact` and `compaction_trigger`: what is kept, what becomes a summary, and how both come back."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import CompactedResponse

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from server.api.responses.conversation import SUMMARIZE, SUMMARY_FOLLOWS
from server.modes.profile import Profile
from tests.fake_engine import FakeEngine
from tests.scripted_server import app_of, serving
from tests.server.conftest import MODEL, Client
from tests.server.test_http import error_of
from tests.server.test_openapi import Document
from tests.server.test_responses import URL, WEATHER, events_of, kinds, post

SUMMARY = "Rome is warm."
ASK = {"role": "user", "content": SUMMARIZE}
TOLD = {"role": "user", "content": SUMMARY_FOLLOWS + SUMMARY}
NEXT = {"role": "user", "content": "And tomorrow?"}
FIRST = {"role": "user", "content": "How is Rome?"}
CALL = {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Rome"}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "20 degrees"}
ANSWER = {"role": "assistant", "content": "Warm."}
SYSTEM = {"role": "developer", "content": "Be brief."}
LONG = [SYSTEM, FIRST, {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}]
LONG += [CALL, RESULT, ANSWER]


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    """Thinks where thinking is open, and sums up whatever it is asked."""
    said = [*fmt.encode_text(SUMMARY), fmt.end_of_turn_id]

    def script(prompt: list[int]) -> Iterator[int]:
        thinking = [*fmt.encode_text("What was it?"), *fmt.close_thinking()]
        return iter(thinking + said if fmt.is_thinking_open(prompt) else said)

    return FakeEngine(script, (fmt.end_of_turn_id,))


@pytest.fixture
async def http(client: Client, engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with client(engine) as connected:
        yield connected


async def compacted(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post(f"{URL}/compact", json={"model": MODEL, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    Document((await http.get("/openapi.json")).json()).check(f"{URL}/compact", "post", 200, "application/json", body)
    return body


def text_of(message: dict[str, Any]) -> tuple[str, str]:
    (part,) = message["content"]
    return message["role"], part["text"]


async def test_a_conversation_becomes_what_the_client_said_and_a_summary(
    http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat
) -> None:
    body = await compacted(http, input=LONG, instructions="Help.", tools=[WEATHER])
    *kept, summary = body["output"]
    assert body["object"] == "response.compaction"
    assert [text_of(one) for one in kept] == [("developer", "Be brief."), ("user", "How is Rome?")]
    assert summary["type"] == "compaction"
    assert "Rome" not in summary["encrypted_content"]
    assert body["usage"]["input_tokens"] == len(engine.seen[0].prompt_ids)
    assert body["usage"]["output_tokens"] == len(fmt.encode_text(SUMMARY)) + 1
    prompt = fmt.decode(engine.seen[0].prompt_ids)
    assert SUMMARIZE in prompt
    assert "20 degrees" in prompt
    assert (await http.get(f"{URL}/{body['id']}")).status_code == 404


async def test_it_comes_back_as_it_is(http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat) -> None:
    output = (await compacted(http, input=LONG))["output"]
    await post(http, input=[*output, NEXT])
    assert engine.seen[-1].prompt_ids == fmt.render([SYSTEM, FIRST, TOLD, NEXT], DIRECT)
    # Codex's older name, and a client that left out nothing.
    await post(http, input=[*LONG, {**output[-1], "type": "compaction_summary"}, NEXT])
    assert engine.seen[-1].prompt_ids == fmt.render([SYSTEM, FIRST, TOLD, NEXT], DIRECT)


async def test_a_summary_takes_the_place_of_the_one_before(
    http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat
) -> None:
    first = (await compacted(http, input=LONG))["output"]
    second = (await compacted(http, input=[*first, NEXT, ANSWER]))["output"]
    assert engine.seen[-1].prompt_ids == fmt.render([SYSTEM, FIRST, TOLD, NEXT, ANSWER, ASK], DIRECT)
    assert [one["type"] for one in second] == ["message", "message", "message", "compaction"]
    await post(http, input=[*first, NEXT, second[-1]])
    assert engine.seen[-1].prompt_ids == fmt.render([SYSTEM, FIRST, NEXT, TOLD], DIRECT)


async def test_stored_responses_are_compacted(http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat) -> None:
    stored = await post(http, input=[FIRST])
    output = (await compacted(http, previous_response_id=stored["id"]))["output"]
    assert [text_of(one) for one in output[:-1]] == [("user", "How is Rome?")]
    said = {"role": "assistant", "content": SUMMARY}
    assert engine.seen[-1].prompt_ids == fmt.render([FIRST, said, ASK], DIRECT)


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
async def test_codex_asks_for_it_within_the_conversation(
    http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat, mode: str
) -> None:
    form = {"format": {"type": "json_object"}}
    asked = {"input": [FIRST, ANSWER, {"type": "compaction_trigger"}], "reasoning_mode": mode, "text": form}
    whole = await post(http, **asked, tools=[WEATHER])
    assert engine.seen[-1].sampling.grammar is None
    streamed = events_of((await http.post(URL, json={"model": MODEL, "stream": True, **asked})).text)
    for response in (whole, streamed[-1]["response"]):
        *thoughts, summary = response["output"]
        assert [one["type"] for one in thoughts] == ["reasoning"] * (mode == "reasoning")
        assert (response["status"], summary["type"]) == ("completed", "compaction")
        await post(http, input=[FIRST, ANSWER, summary, NEXT])
        assert engine.seen[-1].prompt_ids == fmt.render([FIRST, TOLD, NEXT], DIRECT)
    assert kinds(streamed)[-3:] == ["output_item.added", "output_item.done", "completed"]
    assert streamed[-3]["item"]["encrypted_content"] == ""
    if mode == "reasoning":
        assert engine.seen[1].prompt_ids == fmt.render([FIRST, ANSWER, ASK], THINKING)


async def test_a_stored_one_is_gone_on_from(http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat) -> None:
    first = await post(http, input=[FIRST])
    second = await post(http, input=[{"type": "compaction_trigger"}], previous_response_id=first["id"])
    await post(http, input=[NEXT], previous_response_id=second["id"])
    assert engine.seen[-1].prompt_ids == fmt.render([FIRST, TOLD, NEXT], DIRECT)
    listed = (await http.get(f"{URL}/{second['id']}/input_items")).json()["data"]
    assert [one["type"] for one in listed] == ["compaction_trigger"]


@pytest.mark.parametrize(
    ("path", "fields", "param", "said"),
    [
        ("/compact", {"stream": True}, "stream", "comes whole"),
        ("/compact", {"background": True}, "background", "comes whole"),
        ("/compact", {"input": None}, "input", "is required"),
        ("/compact", {"input": "x " * 50_000}, "input", "maximum context length"),
        ("", {"input": [{"type": "compaction_trigger"}, FIRST]}, "input[0]", "has to be the last item"),
        ("", {"input": [{"type": "compaction"}]}, "input[0].encrypted_content", "is required"),
        (
            "",
            {"input": [FIRST, {"type": "compaction", "encrypted_content": "A" * 80}]},
            "input[1].encrypted_content",
            "was not sealed by this server",
        ),
    ],
)
async def test_what_is_wrong_is_named(
    http: httpx.AsyncClient, path: str, fields: dict[str, Any], param: str, said: str
) -> None:
    response = await http.post(URL + path, json={"model": MODEL, "input": "Hi", **fields})
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param), error
    assert said in error["message"]


async def test_a_thought_is_no_summary(http: httpx.AsyncClient) -> None:
    """What was sealed as the one does not come back as the other."""
    summary = (await compacted(http, input=[FIRST]))["output"][-1]
    wrong = {"type": "reasoning", "summary": [], "encrypted_content": summary["encrypted_content"]}
    error = error_of(await http.post(URL, json={"model": MODEL, "input": [FIRST, wrong, NEXT]}))
    assert error["param"] == "input[1].encrypted_content"


def test_openais_sdk(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    with (
        serving(app_of(engine, profile, fmt)) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as sdk,
    ):
        items: Any = LONG
        window = sdk.responses.compact(model=MODEL, input=items, prompt_cache_key="a", service_tier="auto")
        assert isinstance(window, CompactedResponse)
        assert window.output[-1].type == "compaction"
        assert window.usage.output_tokens == len(fmt.encode_text(SUMMARY)) + 1
        following: Any = [*(item.model_dump(exclude_none=True, warnings=False) for item in window.output), NEXT]
        response = sdk.responses.create(model=MODEL, input=following)
    assert response.output_text == SUMMARY
    assert engine.seen[-1].prompt_ids == fmt.render([SYSTEM, FIRST, TOLD, NEXT], DIRECT)

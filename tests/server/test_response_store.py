"""What is stored of responses: asked for, continued, referred to, deleted, listed, bounded, and each client's own."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT
from server.api.responses.events_log import EventLog
from server.api.responses.store import ENTRY_BYTES, ITEM_BYTES, ResponseStore, StoredInput
from server.app import create_app
from server.core.request import Received
from server.core.serving import Serving
from server.errors import UnknownResponseError
from server.http.reading import PARSED_BYTES, hold_more
from server.modes.profile import Profile
from server.offload import LONG
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, Client, always
from tests.server.test_http import error_of
from tests.server.test_responses import URL, WEATHER, asked, call_of, post, stream

LISTED: TypeAdapter[list[ResponseItem]] = TypeAdapter(list[ResponseItem])
EMPTY = StoredInput.of([])
NEXT = {"role": "user", "content": "And?"}


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    """Answers with text and a call, spelled in other tokens than the tokenizer's own."""
    spelled = [token_id for letter in "So it is." for token_id in fmt.encode_text(letter)]
    assert spelled != fmt.encode_text("So it is.")
    call = call_of(fmt, "get_weather", '{"city": "Rome"}')
    return FakeEngine(always([*spelled, *fmt.encode_text("\n"), *call, fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


@pytest.fixture
async def http(client: Client, engine: FakeEngine) -> AsyncIterator[httpx.AsyncClient]:
    async with client(engine) as connected:
        yield connected


def written(engine: FakeEngine, turn: int) -> list[int]:
    """The prompt of a turn and what the model wrote after it, the end of the turn left out."""
    ids = list(engine.script(engine.seen[turn].prompt_ids))
    return engine.seen[turn].prompt_ids + ids[:-1]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_response_goes_on_with_the_tokens_that_the_model_wrote(
    http: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    async def turn(**fields: Any) -> dict[str, Any]:
        body: dict[str, Any] = (
            (await stream(http, **fields))[-1]["response"] if streamed else await post(http, **fields)
        )
        return body

    first = await turn(tools=[WEATHER])
    call = first["output"][-1]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
    second = await turn(tools=[WEATHER], input=[result], previous_response_id=first["id"])
    assert engine.seen[1].prompt_ids[: len(written(engine, 0))] == written(engine, 0)
    third = await turn(tools=[WEATHER], input="And?", previous_response_id=second["id"])
    assert engine.seen[2].prompt_ids[: len(written(engine, 1))] == written(engine, 1)
    assert third["previous_response_id"] == second["id"]


async def test_it_is_the_conversation_that_was_sent_whole(
    http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat
) -> None:
    first = await post(http, instructions="First.")
    await post(http, input="And?", previous_response_id=first["id"])
    by_id = engine.seen[-1].prompt_ids
    await post(http, input=[*HELLO, *first["output"], NEXT])
    assert engine.seen[-1].prompt_ids == by_id == fmt.render([*HELLO, said(first), NEXT], DIRECT)
    await post(http, input=None, previous_response_id=first["id"], instructions="Second.")
    system = {"role": "system", "content": "Second."}
    assert engine.seen[-1].prompt_ids == fmt.render([system, *HELLO, said(first)], DIRECT)


def said(response: dict[str, Any]) -> dict[str, Any]:
    """The message that a response without tools is."""
    (message,) = response["output"]
    return {"role": "assistant", "content": message["content"][0]["text"]}


async def test_items_can_be_referred_to(http: httpx.AsyncClient, engine: FakeEngine, fmt: ChatFormat) -> None:
    first = await post(http)
    (message,) = first["output"]
    (asked_item,) = (await http.get(f"{URL}/{first['id']}/input_items")).json()["data"]
    references = [{"type": "item_reference", "id": asked_item["id"]}, {"id": message["id"]}]
    await post(http, input=[*references, NEXT])
    assert engine.seen[-1].prompt_ids == fmt.render([*HELLO, said(first), NEXT], DIRECT)


async def test_a_stored_response_is_the_one_that_was_sent(http: httpx.AsyncClient) -> None:
    whole, streamed = await post(http, tools=[WEATHER]), (await stream(http))[-1]["response"]
    assert whole["store"]
    for body in (whole, streamed):
        assert (await http.get(f"{URL}/{body['id']}")).json() == body
    response = await http.get(f"{URL}/{whole['id']}?stream=true")
    assert (response.status_code, error_of(response)["param"]) == (400, "stream")


async def test_what_is_not_stored_is_not_there(http: httpx.AsyncClient) -> None:
    body = await post(http, store=False)
    assert not body["store"]
    response = await http.get(f"{URL}/{body['id']}")
    assert (response.status_code, error_of(response)["code"]) == (404, "response_not_found")
    refused = await http.post(URL, json=asked(previous_response_id=body["id"]))
    assert (refused.status_code, error_of(refused)["code"]) == (400, "previous_response_not_found")
    reference = {"type": "item_reference", "id": body["output"][0]["id"]}
    assert error_of(await http.post(URL, json=asked(input=[reference])))["param"] == "input[0].id"


async def test_a_deleted_response_is_gone(http: httpx.AsyncClient) -> None:
    first = await post(http)
    second = await post(http, previous_response_id=first["id"])
    deleted = (await http.delete(f"{URL}/{first['id']}")).json()
    assert deleted == {"id": first["id"], "object": "response", "deleted": True}
    for response in (await http.get(f"{URL}/{first['id']}"), await http.delete(f"{URL}/{first['id']}")):
        assert response.status_code == 404
        assert "was deleted" in error_of(response)["message"]
    assert (await http.get(f"{URL}/{second['id']}")).status_code == 200
    refused = error_of(await http.post(URL, json=asked(previous_response_id=second["id"])))
    assert first["id"] in refused["message"]
    assert refused["param"] == "previous_response_id"


async def test_the_items_of_an_input_are_listed(http: httpx.AsyncClient) -> None:
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "c"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "d"},
        {"type": "custom_tool_call", "call_id": "2", "name": "g", "input": "e"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": "f"},
    ]
    body = await post(http, input=items)
    listing = f"{URL}/{body['id']}/input_items"
    oldest = (await http.get(listing, params={"order": "asc"})).json()
    LISTED.validate_python(oldest["data"], strict=True)
    assert [item["type"] for item in oldest["data"]] == [item.get("type", "message") for item in items]
    assert oldest["data"][2]["id"] == "rs_1"
    newest = (await http.get(listing)).json()
    assert newest["data"] == oldest["data"][::-1]
    assert (newest["has_more"], newest["first_id"]) == (False, oldest["last_id"])
    page = (await http.get(listing, params={"limit": 3, "after": newest["data"][1]["id"]})).json()
    assert (page["data"], page["has_more"]) == (newest["data"][2:5], True)
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"limit": 0}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "x"}, "after"),
    ]
    for wrong, param in mistakes:
        response = await http.get(listing, params=wrong)
        assert (response.status_code, error_of(response)["param"]) == (400, param)


async def test_a_server_that_stores_nothing(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    app = create_app(engine, Settings(max_stored_responses=0), profile, fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        body = await post(http, store=True)
        assert not body["store"]
        assert (await http.get(f"{URL}/{body['id']}")).status_code == 404


def response_of(name: str, previous: str | None = None, size: int = 0) -> dict[str, Any]:
    output = [{"id": f"item_{name}", "text": "x" * size}]
    return {"id": name, "previous_response_id": previous, "output": output}


async def test_a_conversation_that_is_kept_may_be_as_long_as_one_that_is_sent(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    engine = FakeEngine(engine.script, (fmt.end_of_turn_id,), max_context=100_000)
    app = create_app(engine, Settings(max_body_bytes=20_000), profile, fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        first = await post(http, input="a" * 9_000)
        second = await post(http, input="b" * 9_000, previous_response_id=first["id"])
        third = await post(http, input="c" * 9_000, previous_response_id=second["id"])
        over = await http.post(URL, json=asked(previous_response_id=third["id"]))
        ids = [response["output"][0]["id"] for response in (first, second, third)]
        references = [{"type": "item_reference", "id": item} for item in ids]
        referring = await http.post(f"{URL}/input_tokens", json=asked(input=references))
        assert (await post(http, previous_response_id=first["id"], input=references[1:2]))["status"] == "completed"
    for response, param in ((over, "previous_response_id"), (referring, "input")):
        error = error_of(response)
        assert (response.status_code, error["param"]) == (400, param)
        assert error["message"].endswith("bytes of items, and 20000 are taken.")


async def test_it_takes_memory_until_it_is_planned(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    serving = Serving(settings=Settings(), profile=profile, fmt=fmt, engine=engine)
    for before in (Received(), Received(held=serving.parsed.holder())):
        assert await hold_more(before, LONG - 1, serving) is before
        received = await hold_more(before, LONG, serving)
        assert serving.parsed.used == PARSED_BYTES * LONG
        received.planned()
        assert serving.parsed.used == 0


async def test_no_log_probabilities_are_read_again(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    response = await post(http, top_logprobs=5, include=["message.output_text.logprobs"])
    assert response["output"][0]["content"][0]["logprobs"]
    store = ResponseStore(10, 1_000_000)
    store.put(response, EMPTY, "")
    (item,) = store.get(response["id"], "").items()
    assert item["content"] == [{**response["output"][0]["content"][0], "logprobs": []}]
    await post(http, previous_response_id=response["id"], input="And?")


def test_what_was_used_longest_ago_leaves_first() -> None:
    store = ResponseStore(3, 1_000_000)
    for name in "abc":
        store.put(response_of(name), EMPTY, "")
    store.get("a", "")
    store.put(response_of("d"), EMPTY, "")
    assert len(store) == 3
    with pytest.raises(UnknownResponseError, match="has left the store, which keeps the 3 used last"):
        store.get("b", "")
    with pytest.raises(UnknownResponseError, match="was not stored here"):
        store.get("e", "")
    assert store.holder("item_b", "") is None
    assert store.holder("item_a", "") is not None


def test_going_on_counts_as_a_use_of_all_before() -> None:
    store = ResponseStore(3, 1_000_000)
    store.put(response_of("a"), EMPTY, "")
    store.put(response_of("b", "a"), EMPTY, "")
    store.put(response_of("c"), EMPTY, "")
    assert [orjson.loads(stored.response)["id"] for stored in store.conversation("b", "")] == ["a", "b"]
    store.put(response_of("d"), EMPTY, "")
    with pytest.raises(UnknownResponseError):
        store.get("c", "")
    assert len(store.conversation("b", "")) == 2


def test_the_bytes_are_bounded() -> None:
    store = ResponseStore(100, 10 * (ENTRY_BYTES + ITEM_BYTES + 400))
    for number in range(50):
        store.put(response_of(str(number), size=100), EMPTY, "")
    assert len(store) == 10
    assert store.size <= 10 * (ENTRY_BYTES + ITEM_BYTES + 400)
    store.put(response_of("large", size=100_000), EMPTY, "")
    assert len(store) == 10
    with pytest.raises(UnknownResponseError, match="has left the store"):
        store.get("large", "")
    for number in range(40, 50):
        store.delete(str(number), "")
    assert (len(store), store.size) == (0, 0)


def test_a_client_has_its_own_only() -> None:
    store = ResponseStore(10, 1_000_000)
    store.put(response_of("a"), EMPTY, "one")
    store.put({**response_of("b"), "output": [{"id": "item_a"}]}, EMPTY, "other")
    for forbidden in (store.get, store.delete, store.conversation):
        with pytest.raises(UnknownResponseError, match="was not stored here"):
            forbidden("a", "other")
    assert store.holder("item_a", "one") == store.get("a", "one")
    assert store.holder("item_a", "other") == store.get("b", "other")
    store.delete("b", "other")
    assert store.holder("item_a", "one") == store.get("a", "one")


class Shown:
    """A response under way."""

    is_over = False
    log: EventLog | None = None

    def __init__(self, client: str) -> None:
        self.client = client

    def snapshot(self) -> dict[str, object]:
        return {}

    def cancel(self) -> dict[str, object]:
        return {}


def test_what_runs_is_known_until_it_is_over_or_left() -> None:
    store, running = ResponseStore(10, 1_000_000), Shown("one")
    store.began("a", running)
    assert store.under_way("a", "one") is running
    assert store.under_way("a", "other") is None
    running.is_over = True
    assert store.under_way("a", "one") is None
    store.began("b", Shown("one"))
    assert store.under_way("b", "one") is None

"""LoRA adapters over HTTP: listed with their aliases, named by requests of every API, loaded and unloaded."""

from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import Profile
from server.settings import LoraModule, Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, MODEL, always

REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 64},
    "/v1/responses": {"input": "Hi"},
}


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("one"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


def served(engine: FakeEngine, profile: Profile, fmt: ChatFormat, *, updates: bool = True) -> httpx.AsyncClient:
    settings = Settings(lora_modules=(LoraModule("sql", "/a"),), allow_lora_updates=updates)
    transport = httpx.ASGITransport(create_app(engine, settings, profile, fmt))
    return httpx.AsyncClient(transport=transport, base_url="http://twogear")


@pytest.mark.parametrize("path", REQUESTS)
async def test_every_api_takes_an_adapter_as_a_model(
    path: str, engine: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    async with served(engine, profile, fmt) as http:
        for name in ("sql", MODEL):
            answer = (await http.post(path, json={"model": name, **REQUESTS[path]})).json()
            assert answer["model"] == name
    assert [one.adapter and one.adapter.name for one in engine.seen] == ["sql", None]


async def test_adapters_are_listed_with_their_aliases(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    async with served(engine, profile, fmt) as http:
        listed = {one["id"]: one for one in (await http.get("/v1/models")).json()["data"]}
        one = (await http.get("/v1/models/sql:reasoning")).json()
        lacking = await http.post("/v1/chat/completions", json={"model": "sqll", "messages": HELLO})
        await http.post("/v1/chat/completions", json={"model": "sql:reasoning", "messages": HELLO, "max_tokens": 600})
    assert list(listed)[3:] == ["sql", "sql:standard", "sql:reasoning"]
    assert (one["root"], one["parent"], one["reasoning_mode"]) == ("sql", MODEL, "reasoning")
    assert listed[MODEL]["parent"] is None
    assert (lacking.status_code, lacking.json()["error"]["param"]) == (404, "model")
    assert "'sql'" in lacking.json()["error"]["message"]
    assert {one.adapter and one.adapter.id for one in engine.seen} == {1}


async def test_adapters_come_and_go(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    async with served(engine, profile, fmt) as http:

        async def post(path: str, **fields: Any) -> httpx.Response:
            return await http.post(f"/v1/{path}", json=fields)

        loaded = await post("load_lora_adapter", lora_name="new", lora_path="/b")
        again = await post("load_lora_adapter", lora_name="new", lora_path="/c")
        replaced = await post("load_lora_adapter", lora_name="new", lora_path="/c", load_inplace=True)
        assert (loaded.status_code, again.status_code, replaced.status_code) == (200, 400, 200)
        assert again.json()["error"]["param"] == "lora_name"
        assert [one.path for one in engine.adapters.values()] == ["/c"]
        for taken in (MODEL, f"{MODEL}:reasoning", "sql:standard"):
            assert (await post("load_lora_adapter", lora_name=taken, lora_path="/b")).status_code == 400
        engine.refuse_adapters = "there is no folder /d"
        refused = (await post("load_lora_adapter", lora_name="bad", lora_path="/d")).json()["error"]
        assert (refused["param"], refused["message"]) == ("lora_path", "lora_path: there is no folder /d.")
        assert (await post("unload_lora_adapter", lora_name="new")).status_code == 200
        gone = await post("unload_lora_adapter", lora_name="new")
        assert (gone.status_code, gone.json()["error"]["param"]) == (404, "lora_name")
        assert (await post("chat/completions", model="new", messages=HELLO)).status_code == 404


async def test_requests_change_nothing_unless_allowed(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    async with served(engine, profile, fmt, updates=False) as http:
        for path, fields in (("load", {"lora_path": "/b"}), ("unload", {})):
            answer = await http.post(f"/v1/{path}_lora_adapter", json={"lora_name": "sql", **fields})
            assert answer.status_code == 403
            assert "--allow-runtime-lora-updating" in answer.json()["error"]["message"]

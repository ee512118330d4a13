"""Salts keep what is remembered of texts apart: the engine's pages, and how the model spelled what it wrote."""

from msgspec.structs import replace

from chat_templates.format import ChatFormat
from server.api.chat.admission import chat_request
from server.api.chat.body import ChatRequest
from server.core.admission import admit
from server.core.request import Received
from server.core.serving import Serving
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, MODEL, Client, always, body


async def test_every_generation_has_the_salt(client: Client, fmt: ChatFormat) -> None:
    """Also those that take the place of another one: after thinking that is closed, and of every choice."""
    engine = FakeEngine(always([*fmt.encode_text("so so so"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    fields = {"reasoning_mode": "reasoning", "thinking_token_budget": 1, "n": 2, "max_tokens": 20}
    async with client(engine) as http:
        for more in ({}, {"response_format": {"type": "json_object"}}):
            answer = await http.post("/v1/chat/completions", json=body(**fields, **more, cache_salt="salt"))
            assert answer.status_code == 200, answer.text
        text = await http.post("/v1/completions", json={"prompt": "a", "cache_salt": "salt"})
        assert text.status_code == 200
        message = {"model": MODEL, "messages": HELLO, "max_tokens": 9, "metadata": {"user_id": "other"}}
        said = await http.post("/v1/messages", json={**message, "cache_salt": "salt"})
        assert said.status_code == 200, said.text
        response = await http.post("/v1/responses", json={"model": MODEL, "input": "a", "cache_salt": "salt"})
        assert response.status_code == 200, response.text
        assert len(engine.seen) >= 10
        assert {request.cache_salt for request in engine.seen} == {"salt"}
        refused = await http.post("/v1/chat/completions", json=body(cache_salt=""))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")


async def salts(profile: Profile, fmt: ChatFormat, settings: Settings) -> list[str]:
    """Of requests of two keys and none, without and with a salt of their own."""
    engine = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    serving = Serving(settings=settings, profile=profile, fmt=fmt, engine=engine)
    asked = ChatRequest(messages=HELLO)
    requests = [
        replace(chat_request(asked, Received(client=client)), cache_salt=salt)
        for client in ("", "one", "two")
        for salt in ("", "own")
    ]
    return [(await admit(request, serving)).cache_salt for request in requests]


async def test_keys_may_be_isolated(profile: Profile, fmt: ChatFormat) -> None:
    assert await salts(profile, fmt, Settings()) == ["", "own"] * 3
    isolated = await salts(profile, fmt, Settings(isolate_keys=True))
    assert isolated[:2] == ["", "own"]
    assert len(set(isolated)) == 6

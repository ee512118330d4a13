"""A template that takes long is refused, and other requests go on meanwhile."""

import asyncio

import httpx

from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.chat_templates.test_limits import SLOW, format_of
from tests.fake_engine import FakeEngine
from tests.server.conftest import HELLO, always
from tests.server.test_http import error_of


async def test_others_go_on_beside_a_slow_template(fmt: ChatFormat, profile: Profile) -> None:
    slow = format_of(SLOW[0] + "{{ messages[0].content }}" + "<think></think>")
    engine = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    app = create_app(engine, Settings(), profile, slow)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        refused = asyncio.create_task(http.post("/v1/chat/completions", json={"messages": HELLO}))
        turns = 0
        while not refused.done():
            assert (await http.post("/v1/completions", json={"prompt": "a"})).status_code == 200
            turns += 1
    error = error_of(await refused)
    assert (error["param"], "more than 2 s" in error["message"]) == ("messages", True)
    assert turns > 20

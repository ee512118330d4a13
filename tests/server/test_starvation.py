"""Over HTTP, with an engine of few places: short requests are answered while thinkers fill the server."""

import asyncio
import random
from collections.abc import AsyncGenerator, Iterator

import httpx
import pytest

from chat_templates.format import ChatFormat
from engine.messages import Delta, Generate
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine, script_of
from tests.server.conftest import body

CHAT = "/v1/chat/completions"
PLACES = 8


class FewPlaces(FakeEngine):
    """Thinks as long as it is let, answers at once; `most` is how many generations there were at the same time."""

    def __init__(self, fmt: ChatFormat) -> None:
        self.running = self.most = 0
        letters, rng = fmt.encode_text(" a b c d e f g h i j k l m n"), random.Random(0)
        thought = [rng.choice(letters) for _ in range(4000)]  # one that repeated itself would be closed

        def script(prompt: list[int]) -> Iterator[int]:
            if fmt.is_thinking_open(prompt):
                return script_of(thought, len(prompt))(prompt)
            return iter([*fmt.encode_text("so"), fmt.end_of_turn_id])

        super().__init__(script, (fmt.end_of_turn_id,), max_num_seqs=PLACES, max_context=100_000)

    async def generate(self, request: Generate, kind: str = "") -> AsyncGenerator[Delta, None]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            async for delta in super().generate(request):
                yield delta
        finally:
            self.running -= 1


@pytest.fixture
def few(fmt: ChatFormat) -> FewPlaces:
    return FewPlaces(fmt)


async def test_short_requests_are_answered_while_thinkers_fill_the_server(
    few: FewPlaces, profile: Profile, fmt: ChatFormat
) -> None:
    app = create_app(few, Settings(), profile, fmt)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear", timeout=60) as http:
        thinker = body(reasoning_mode="reasoning", max_tokens=4000, thinking_token_budget=2500, temperature=0)
        thinking = [asyncio.create_task(http.post(CHAT, json=thinker)) for _ in range(3 * PLACES)]
        many = asyncio.create_task(http.post(CHAT, json=body(n=100)))
        while few.most < PLACES:  # noqa: ASYNC110 - the fake has no event for it
            await asyncio.sleep(0)
        short = await asyncio.gather(*(http.post(CHAT, json=body()) for _ in range(4 * PLACES)))
        assert {response.json()["choices"][0]["message"]["content"] for response in short} == {"so"}
        assert not any(task.done() for task in thinking)
        assert few.most <= PLACES
        assert len((await many).json()["choices"]) == 100
        answers = [(await task).json() for task in thinking]
    assert {answer["usage"]["completion_tokens_details"]["reasoning_tokens"] for answer in answers} == {2500}
    assert {answer["choices"][0]["message"]["content"] for answer in answers} == {"so"}
    assert few.most <= PLACES

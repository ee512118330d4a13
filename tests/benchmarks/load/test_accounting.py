"""The account of a streamed answer: the server's count and the times are right, whatever pieces the answer comes in."""

import json
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.accounting import Sample, StreamAccount
from benchmarks.load.workload import MODEL_NAME, Load, Prompts, requests
from server.app import create_app
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.benchmarks.load.scripted import FMT, thinking
from tests.fake_engine import FakeEngine


def event(delta: dict[str, Any] | None = None, **fields: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta}]
    return b"data: " + orjson.dumps({"choices": choices, **fields}) + b"\n\n"


USAGE = {"prompt_tokens": 7, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 3}}
ANSWER = [
    event({"role": "assistant", "content": ""}),
    event({"reasoning": "hm", "reasoning_content": "hm"}),
    event({"reasoning_content": "so"}),
    event({"content": "é two tokens"}),
    event({}, usage=None),
    event(usage=USAGE),
    b"data: [DONE]\n\n",
]


def account(pieces: list[tuple[bytes, float]], end: float = 9.0, error: str | None = None) -> Sample:
    one = StreamAccount(1.0, thinks=True)
    for data, now in pieces:
        one.feed(data, now)
    return one.sample(end, error)


def test_the_moments_of_an_answer_and_the_servers_own_count() -> None:
    sample = account([(data, 2.0 + number) for number, data in enumerate(ANSWER)])
    assert sample == Sample(
        thinks=True,
        started=1.0,
        first=3.0,
        first_answer=5.0,
        ended=7.0,
        prompt_tokens=7,
        cached_tokens=3,
        completion_tokens=9,
        events=3,
    )


@given(st.lists(st.integers(1, 40), min_size=1), st.booleans())
def test_where_the_bytes_are_cut_does_not_matter(sizes: list[int], carriage_returns: bool) -> None:
    whole = b"".join(ANSWER)
    if carriage_returns:
        whole = whole.replace(b"\n", b"\r\n")
    pieces, at, number = [], 0, 0
    while at < len(whole):
        size = sizes[number % len(sizes)]
        pieces.append((whole[at : at + size], 5.0))
        at, number = at + size, number + 1
    assert account(pieces) == account([(b"".join(ANSWER), 5.0)])


@pytest.mark.parametrize(
    ("events", "told"),
    [
        (ANSWER[:5], "without usage"),
        ([*ANSWER[:3], event(error={"message": "engine lost"})], "engine lost"),
        ([b"data: {broken\n\n"], "no JSON"),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(events: list[bytes], told: str) -> None:
    sample = account([(data, 2.0) for data in events], end=8.0)
    assert sample.error is not None
    assert told in sample.error
    assert (sample.ended, sample.completion_tokens) == (8.0, 0)


def test_what_the_connection_knows_counts_more() -> None:
    assert account([(ANSWER[1], 2.0)], error="cut off").error == "cut off"
    assert account([(b"".join(ANSWER), 2.0)], error="too late").error == "too late"


@pytest.mark.parametrize("chunks", [(1,), (3, 2)])
async def test_the_count_is_that_of_the_front_end(chunks: tuple[int, ...]) -> None:
    """Our own stream, in which one event may hold several tokens."""
    load = Load(streams=1, mode="half", prompt_tokens=20, output_tokens=32, requests=2, limit=9, warm_up=0)
    engine = FakeEngine(thinking, (FMT.end_of_turn_id,), chunks=chunks)
    profile = load_profile(PROFILE_FOLDER / "twogear_tiny.toml")
    app = create_app(engine, Settings(served_model_name=MODEL_NAME), profile, FMT)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as client:
        for request in requests(load, Prompts(EMBEDDED_MODEL), "seed"):
            one = StreamAccount(0.0, thinks=request.thinks)
            async with client.stream("POST", "/v1/chat/completions", content=json.dumps(request.body)) as response:
                async for data in response.aiter_raw():
                    one.feed(data, 1.0)
            sample = one.sample(2.0)
            assert sample.error is None
            assert sample.completion_tokens == 32
            assert sample.prompt_tokens == len(engine.seen[-1].prompt_ids)
            assert sample.first_answer == 1.0
            assert sample.events <= 32

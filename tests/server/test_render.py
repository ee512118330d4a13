"""`…/render` gives what the engine is given when the same body is sent to be answered, and runs nothing."""

from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from engine.sampling import SAMPLING_FIELDS
from server.access.keys import hash_of, plain_keys
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import MODEL, Client, body

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, body()),
    (CHAT, body(model=f"{MODEL}:reasoning", thinking_token_budget=7, max_tokens=50, cache_salt="own")),
    (CHAT, body(reasoning_effort="low", top_k=3, seed=5, stop=["x"], stop_token_ids=[9], logit_bias={"8": -1.5})),
    (CHAT, body(response_format={"type": "json_object"}, logprobs=True, top_logprobs=2, n=2)),
    (CHAT, body(bad_words=["no"], allowed_token_ids=[5, 6], min_tokens=1, ignore_eos=True, max_tokens=4)),
    ("/v1/messages", body(max_tokens=9, stop_sequences=["x"])),
    ("/v1/responses", {"model": MODEL, "input": "Hi", "reasoning": {"effort": "low"}, "max_output_tokens": 20}),
    (TEXT, {"prompt": ["Once", "a b c"], "max_tokens": 5, "temperature": 0.5}),
    (TEXT, {"prompt": [5, 6, 7], "prompt_logprobs": 1}),
]


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    """Thinks, where thinking is open, and answers."""
    answer = [*fmt.encode_text("a"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("so"), *fmt.close_thinking()]
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer), (fmt.end_of_turn_id,)
    )


@pytest.mark.parametrize(("path", "fields"), BODIES)
async def test_it_is_what_the_engine_is_given(
    client: Client, engine: FakeEngine, path: str, fields: dict[str, Any]
) -> None:
    async with client(engine) as http:
        answer = await http.post(f"{path}/render", json=fields)
        assert answer.status_code == 200, answer.text
        assert engine.seen == []  # nothing was run
        assert (await http.post(path, json=fields)).status_code == 200
    told, seen = (answer.json(), engine.seen) if path == TEXT else ([answer.json()], engine.seen[:1])
    assert [one["token_ids"] for one in told] == [one.prompt_ids for one in seen]
    for one, given in zip(told, seen, strict=True):
        said = one["sampling_params"]
        assert {name: said[name] for name in SAMPLING_FIELDS} == {
            name: getattr(given.sampling, name) for name in SAMPLING_FIELDS
        }
        assert said.get("seed") == given.sampling.seed
        assert said["stop_token_ids"] == fields.get("stop_token_ids", [])  # which do not end thinking
        assert said.get("prompt_logprobs") == given.sampling.prompt_logprobs
        assert one["cache_salt"] == (given.cache_salt or None)


async def test_a_thinker_has_its_budget_and_a_direct_answer_none(client: Client, engine: FakeEngine) -> None:
    async with client(engine) as http:
        thinker = (await http.post(f"{CHAT}/render", json=BODIES[1][1])).json()
        direct = (await http.post(f"{CHAT}/render", json=body())).json()
    assert thinker["reasoning_ended"] is False
    assert thinker["sampling_params"]["thinking_token_budget"] == 7
    assert thinker["sampling_params"]["max_tokens"] == 50
    assert thinker["model"] == direct["model"] == MODEL
    assert direct["reasoning_ended"] is True
    assert "thinking_token_budget" not in direct["sampling_params"]


async def test_what_a_stream_asks_for_stands_there(client: Client, engine: FakeEngine) -> None:
    asked = body(stream=True, stream_options={"include_usage": True})
    async with client(engine) as http:
        told = (await http.post(f"{CHAT}/render", json=asked)).json()
    assert (told["stream"], told["stream_options"]) == (True, {"include_usage": True})


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, body(reasoning_mode="deep"), "reasoning_mode"),
        (CHAT, body(max_tokens=1_000_000), "max_tokens"),
        (CHAT, body(stream_options={"include_usage": True}), "stream_options"),
        (CHAT, {"model": MODEL}, "messages"),
        (TEXT, {"prompt": [], "max_tokens": 5}, "prompt"),
        (TEXT, {"prompt": "a", "model": "gpt-5"}, "model"),
    ],
)
async def test_what_a_completion_is_refused_it_is_refused(
    client: Client, engine: FakeEngine, path: str, fields: dict[str, Any], param: str
) -> None:
    async with client(engine) as http:
        whole, rendered = [await http.post(one, json=fields) for one in (path, f"{path}/render")]
    assert rendered.status_code == whole.status_code in (400, 404)
    assert rendered.json() == whole.json()
    assert rendered.json()["error"]["param"] == param


async def test_it_needs_a_key_that_may_use_the_models(fmt: ChatFormat, profile: Profile, engine: FakeEngine) -> None:
    app = create_app(engine, Settings(), profile, fmt, keys=plain_keys([hash_of(b"secret")]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://twogear") as http:
        assert (await http.post(f"{CHAT}/render", json=body())).status_code == 401
        told = await http.post(f"{CHAT}/render", json=body(), headers={"Authorization": "Bearer secret"})
    assert told.status_code == 200

"""OpenAI's own client and keys: its exceptions for 401, 403 and 429, and the headers of limits where it shows them."""

from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from chat_templates.format import ChatFormat
from server.access.keys import Key, KeyFile, Limits, hash_of
from server.app import create_app
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.scripted_server import serving
from tests.server.conftest import MODEL, always

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is 2 + 2?"}]
KEYS = KeyFile(
    keys=(
        Key(name="free", hash=hash_of(b"sk-free")),
        Key(name="direct", hash=hash_of(b"sk-direct"), modes=("standard",)),
        Key(name="metrics", hash=hash_of(b"sk-metrics"), routes=("metrics",)),
        Key(
            name="limited",
            hash=hash_of(b"sk-limited"),
            limits=Limits(requests_per_minute=2, tokens_per_minute=100_000),
        ),
    )
)


@pytest.fixture
def url(profile: Profile, fmt: ChatFormat) -> Iterator[str]:
    engine = FakeEngine(always([*fmt.encode_text("It is 4."), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    with serving(create_app(engine, Settings(), profile, fmt, keys=KEYS)) as at:
        yield at


def sdk(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def ask(client: openai.OpenAI, model: str = MODEL) -> str | None:
    return client.chat.completions.create(model=model, messages=QUESTION).choices[0].message.content


def test_a_key_that_is_known(url: str) -> None:
    with sdk(url, "sk-free") as client:
        assert ask(client) == "It is 4."
        assert client.models.list().data[0].id == MODEL


def test_a_key_that_is_not(url: str) -> None:
    with sdk(url, "sk-other") as client, pytest.raises(openai.AuthenticationError) as refused:
        ask(client)
    assert refused.value.code == "invalid_api_key"


def test_what_a_key_may_not_do(url: str) -> None:
    with sdk(url, "sk-metrics") as client, pytest.raises(openai.PermissionDeniedError) as refused:
        ask(client)
    assert refused.value.code == "insufficient_permissions"
    with sdk(url, "sk-direct") as client:
        assert ask(client) == "It is 4."
        with pytest.raises(openai.PermissionDeniedError, match="not the mode reasoning"):
            ask(client, f"{MODEL}:reasoning")


def test_limits_are_told_and_kept(url: str) -> None:
    with sdk(url, "sk-limited") as client:
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=50)
        assert raw.headers["x-ratelimit-limit-requests"] == "2"
        assert raw.headers["x-ratelimit-remaining-requests"] == "1"
        assert raw.headers["x-ratelimit-limit-tokens"] == "100000"
        streamed = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, stream=True)
        assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
        assert len(list(streamed.parse())) > 2
        with pytest.raises(openai.RateLimitError) as refused:
            ask(client)
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.type == "requests"
    assert int(refused.value.response.headers["retry-after"]) >= 1

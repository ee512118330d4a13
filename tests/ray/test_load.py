"""Tokens to come by what a server says, and how many replicas they take."""

from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from chat_templates.format import ChatFormat
from deploy.ray.load import STAT, Expected, TokensPerReplica
from server.app import create_app
from server.modes.profile import Profile
from server.routing import FIRST_GUESS
from server.settings import Settings
from tests.fake_engine import FakeEngine


def metrics(running: int = 0, waiting: int = 0, ended: int = 0, drawn: int = 0, mode: str = "reasoning") -> str:
    return (
        f'twogear_requests_running{{mode="{mode}"}} {running}.0\n'
        f'twogear_requests_waiting{{mode="{mode}"}} {waiting}.0\n'
        f'twogear_requests_total{{mode="{mode}",outcome="completed"}} {ended}.0\n'
        f'twogear_requests_total{{mode="{mode}",outcome="rejected"}} 1000.0\n'
        f'twogear_tokens_total{{kind="reasoning",mode="{mode}"}} {drawn - 1 if drawn else 0}.0\n'
        f'twogear_tokens_total{{kind="answer",mode="{mode}"}} {1 if drawn else 0}.0\n'
        f'twogear_tokens_total{{kind="prompt",mode="{mode}"}} 5000.0\n'
    )


def test_before_any_has_ended_it_guesses() -> None:
    assert Expected().read(metrics(running=2, waiting=3)) == 4 * FIRST_GUESS


def test_it_learns_what_a_mode_draws() -> None:
    expected = Expected()
    expected.read(metrics(ended=10, drawn=9000))
    assert expected.read(metrics(waiting=2, ended=10, drawn=9000)) == pytest.approx(1800)
    expected.read(metrics(ended=1000, drawn=9000 + 990 * 100))
    assert expected.read(metrics(waiting=1, ended=1000, drawn=108_000)) == pytest.approx(100)


def test_modes_are_apart() -> None:
    expected = Expected()
    expected.read(metrics(ended=1, drawn=900) + metrics(ended=1, drawn=10, mode="standard"))
    text = metrics(waiting=1, ended=1, drawn=900) + metrics(waiting=1, ended=1, drawn=10, mode="standard")
    assert expected.read(text) == pytest.approx(910)


def test_a_server_that_began_anew_teaches_nothing_wrong() -> None:
    expected = Expected()
    expected.read(metrics(ended=10, drawn=1000))
    expected.read(metrics())
    expected.read(metrics(ended=1, drawn=100))
    assert expected.read(metrics(waiting=1, ended=1, drawn=100)) == pytest.approx(100)


def test_it_reads_what_the_server_writes(fmt: ChatFormat, profile: Profile) -> None:
    engine = FakeEngine(lambda _: iter([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    with TestClient(create_app(engine, Settings(), profile, fmt), base_url="http://localhost") as client:
        client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
        text = client.get("/metrics").text
    expected = Expected()
    assert expected.read(text) == 0
    waiting = text.replace('requests_waiting{mode="standard"} 0.0', 'requests_waiting{mode="standard"} 2.0')
    assert waiting != text
    assert expected.read(waiting) == 2  # the token that ends the turn, for each


def test_the_policy_sums_over_replicas() -> None:
    policy = TokensPerReplica(1000)
    context = SimpleNamespace(aggregated_metrics={STAT: {"a": 900.0, "b": 1200.0}})
    assert policy(context)[0] == 3
    assert policy(SimpleNamespace(aggregated_metrics=None))[0] == 0

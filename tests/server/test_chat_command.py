"""`twogear chat` against a real HTTP server around a scripted engine."""

import io
from collections.abc import Iterator

import pytest

from chat_templates.format import ChatFormat
from server.cli import main
from server.engine_client import EngineStatus
from server.modes.profile import Profile
from tests.fake_engine import FakeEngine
from tests.server.test_launch import Running


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    answer = [*fmt.encode_text("It is 4.\x1b[2J"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("2 and 2"), *fmt.close_thinking()]
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer), (fmt.end_of_turn_id,)
    )


@pytest.fixture
def url(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> Iterator[str]:
    running = Running(engine, profile, fmt)
    yield running.url
    running.server.should_exit = True
    running.thread.join()


def talk(url: str, typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a person sees who types these lines."""
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert main(["chat", "--url", url]) == 0
    return capsys.readouterr().out


def test_a_conversation_in_both_modes(
    url: str, engine: FakeEngine, fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--url", url, "--mode", "fast"]) == 2
    assert "--mode fast: this server has standard, reasoning" in capsys.readouterr().err
    out = talk(url, "2 + 2?\n/mode reasoning\n/mode fast\nagain\n/new\nand again\n/quit\n", monkeypatch, capsys)
    assert out.count("It is 4.") == 3
    assert out.count("2 and 2") == 2
    assert "\x1b[2J" not in out
    first, second, third = (request.prompt_ids for request in engine.seen)
    assert fmt.is_thinking_open(second)
    assert not fmt.is_thinking_open(first)
    assert "It is 4." in fmt.decode(second)
    assert "It is 4." not in fmt.decode(third)


def test_a_server_that_cannot_answer_tells_why(
    url: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.status = EngineStatus("loading", "the weights", 0.5)
    assert "the model is loading, 50%: the weights" in talk(url, "hi\n", monkeypatch, capsys).lower()
    engine.status, engine.fail_after = EngineStatus("ready", "", 1.0), 2
    assert "engine lost" in talk(url, "hi\n", monkeypatch, capsys).lower()

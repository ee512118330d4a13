"""`@ai-sdk/anthropic`, the Vercel AI SDK's client of Anthropic's API."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.scenarios import MODEL, REPLY, Forecast


@pytest.mark.engine
def test_the_ai_sdk(url: str, node: Callable[..., str]) -> None:
    answers: dict[str, Any] = json.loads(node("ai_sdk_anthropic.mjs", url, MODEL))
    assert answers["text"] == answers["stream"]["text"] != ""
    assert (answers["stream"]["finish"], answers["stream"]["thinking"]) == ("stop", "")
    assert answers["thought"]["text"]
    assert answers["thought"]["thinking"]
    assert answers["thought"]["usage"]["outputTokens"] > answers["stream"]["usage"]["outputTokens"]
    Forecast.model_validate(answers["object"])
    status, message = answers["error"]
    assert status == 404
    assert "another-model" in message


def test_its_tool_loop(scripted: str, node: Callable[..., str]) -> None:
    answers: dict[str, Any] = json.loads(node("ai_sdk_anthropic_loop.mjs", scripted, MODEL))
    for thinking in ("disabled", "enabled"):
        assert answers[thinking] == {"text": REPLY, "steps": [[["get_weather", {"city": "Rome"}]], []]}

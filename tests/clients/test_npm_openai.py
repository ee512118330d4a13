"""Clients from npm that speak OpenAI's APIs: the Vercel AI SDK with its defaults, compatcanary's `modern` profile."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.scenarios import MODEL, REPLY, Forecast

Node = Callable[..., str]


@pytest.mark.engine
def test_compatcanary(url: str, node: Node) -> None:
    printed = node("node_modules/compatcanary/src/cli.js", "scan", "--base-url", url, "--model", MODEL,
                   "--profile", "modern", "--format", "json", "--timeout", "120", "--fail-on", "any")  # fmt: skip
    report = json.loads(printed)
    assert report["compatible"]
    assert {result["status"] for result in report["results"]} == {"pass"}


@pytest.mark.engine
def test_the_ai_sdk(url: str, node: Node) -> None:
    answers: dict[str, Any] = json.loads(node("ai_sdk.mjs", url, MODEL))
    assert answers["text"] == answers["stream"]["text"] != ""
    assert answers["stream"]["finish"] == "stop"
    assert answers["stream"]["thinking"] == ""
    assert answers["thought"]["text"]
    assert answers["thought"]["thinking"]
    assert answers["thought"]["usage"]["outputTokenDetails"]["reasoningTokens"] > 0
    assert answers["mode"]["usage"]["outputTokenDetails"]["reasoningTokens"] > 0
    Forecast.model_validate(answers["object"])
    assert answers["forced"] == [["get_weather", "string"]]
    assert answers["error"][0] == 400
    assert "temperature" in answers["error"][1]


def test_the_ai_sdks_tool_loop(scripted: str, node: Node) -> None:
    answers: dict[str, Any] = json.loads(node("ai_sdk_loop.mjs", scripted, MODEL))
    for how in ("stored", "stateless"):
        assert answers[how] == {"text": REPLY, "steps": [[["get_weather", {"city": "Rome"}]], []]}

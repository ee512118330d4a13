"""curl: the bytes of a stream, an answer and an error, as a shell gets them."""

import json
import subprocess
from typing import Any

import pytest

from tests.clients.scenarios import GET_WEATHER, MODEL, SUM, WEATHER

pytestmark = pytest.mark.engine


def curl(url: str, *options: str, **fields: Any) -> str:
    """What `curl -sS` prints for a chat request; options before the URL."""
    body = {"messages": [{"role": "user", "content": SUM}], "max_tokens": 400, **fields}
    command = ["curl", "-sS", "--max-time", "240", *options, f"{url}/chat/completions", "-d", json.dumps(body)]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode()


def events(text: str) -> list[dict[str, Any]]:
    """The chunks of a whole stream: `data: ` and JSON in a line, a blank line, at last `data: [DONE]`."""
    *parts, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(part.startswith("data: {") and "\n" not in part for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_a_stream(url: str, mode: str) -> None:
    text = curl(
        url, "-N", "-i", stream=True, reasoning_mode=mode, temperature=0, stream_options={"include_usage": True}
    )
    head, _, rest = text.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK")
    assert "content-type: text/event-stream" in head.lower()
    assert "cache-control: no-cache" in head.lower()
    *chunks, last = events(rest)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    (message,) = [choice["message"] for choice in json.loads(curl(url, reasoning_mode=mode, temperature=0))["choices"]]
    for name in ("content", "reasoning_content", "reasoning"):
        assert "".join(delta.get(name, "") for delta in deltas) == message.get(name, "")
    assert ("reasoning" in message) == (mode == "reasoning")
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert (last["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0) == (mode == "reasoning")


@pytest.mark.parametrize("how", [{"reasoning_mode": "reasoning"}, {"model": f"{MODEL}:reasoning"}, {"model": MODEL}])
def test_an_answer(url: str, how: dict[str, Any]) -> None:
    answer = json.loads(curl(url, "-H", "Content-Type: application/json", **how))
    (choice,) = answer["choices"]
    assert choice["message"]["content"]
    assert ("reasoning_content" in choice["message"]) == (how != {"model": MODEL})


@pytest.mark.parametrize("mode", ["standard", "reasoning"])
def test_a_forced_call(url: str, mode: str) -> None:
    parameters = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
    tools = [{"type": "function", "function": {**GET_WEATHER["function"], "parameters": parameters}}]
    forced = {"type": "function", "function": {"name": "get_weather"}}
    fields = {"messages": [{"role": "user", "content": WEATHER}], "tools": tools, "tool_choice": forced}
    (choice,) = json.loads(curl(url, reasoning_mode=mode, **fields))["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", None)  # as OpenAI: it was named
    assert json.loads(call["function"]["arguments"])["city"] in {"Rome", "Oslo"}


def test_an_error(url: str) -> None:
    text = curl(url, "-w", "%{http_code} %{content_type}", reasoning_mode="deep", stream=True)
    body, _, end = text.rpartition("}")
    assert end == "400 application/json"
    assert json.loads(body + "}")["error"]["param"] == "reasoning_mode"

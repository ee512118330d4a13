"""What the tests of Anthropic's messages share: requests, the events of streams, and Anthropic's published schemas."""

from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema_rs
import orjson

from tests.server.conftest import MODEL

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HELLO = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "The weather of a city", "input_schema": SCHEMA}
CLOCK = {"name": "clock", "input_schema": {"type": "object"}}


def asked(**fields: Any) -> dict[str, Any]:
    """A request that is valid unless `fields` make it otherwise."""
    return {"model": MODEL, "max_tokens": 400, "messages": HELLO, **fields}


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each of which is named for its type."""
    assert text.endswith("\n\n")
    events = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        body = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {body['type']}"
        events.append(body)
    return events


def gathered(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream adds up to; its events have Anthropic's order and schemas."""
    events = [event for event in events if event["type"] != "ping"]
    start, *inner, delta, stop = events
    for event in events:
        check("MessageStreamEvent", event)
    assert (start["type"], delta["type"], stop) == ("message_start", "message_delta", {"type": "message_stop"})
    message = start["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    is_open = False
    for event in inner:
        if event["type"] == "content_block_start":
            assert (is_open, event["index"]) == (False, len(message["content"]))
            message["content"].append({**event["content_block"], "json": ""})
        else:
            assert (is_open, event["index"]) == (True, len(message["content"]) - 1)
        is_open = event["type"] != "content_block_stop"
        if event["type"] == "content_block_delta":
            _add(message["content"][-1], event["delta"])
    assert not is_open
    content = [_finished(block) for block in message["content"]]
    usage = {**message["usage"], **delta["usage"]}
    return {**message, **delta["delta"], "content": content, "usage": usage}


def _add(block: dict[str, Any], delta: dict[str, Any]) -> None:
    fields = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
    if delta["type"] == "input_json_delta":
        block["json"] += delta["partial_json"]
    else:
        block[fields[delta["type"]]] += delta[fields[delta["type"]]]


def _finished(block: dict[str, Any]) -> dict[str, Any]:
    text = block.pop("json")
    return {**block, "input": orjson.loads(text or "{}")} if block["type"] == "tool_use" else block


def without_secrets(message: dict[str, Any]) -> dict[str, Any]:
    """The same without what is never the same twice: ids and signatures."""
    content = [{**block, "id": "", "signature": ""} for block in message["content"]]
    return {**message, "id": "", "content": content}


def check(kind: str, value: Any) -> None:
    """Validates `value` against the schema that Anthropic publishes under this name."""
    _validator(kind).validate(value)


@cache
def _validator(kind: str) -> jsonschema_rs.Validator:
    document = orjson.loads((files("llm_comply") / "specs" / "anthropic.json").read_bytes())
    return jsonschema_rs.validator_for({**document, "$ref": f"#/components/schemas/{kind}"})

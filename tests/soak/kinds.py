"""What clients ask for in the soak: every API there is, both modes, tools, grammars, streams and not."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
GREEDY = {"temperature": 0, "logprobs": True, "top_logprobs": 5}
REFUSED = "a mode that is not there"
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}, "words": {"type": "array", "items": {"type": "string"}, "maxItems": 3}},
    "required": ["sum"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


@dataclass(frozen=True)
class Kind:
    """One kind of request. `greedy`: its tokens have to be those of the same request alone."""

    name: str
    path: str
    body: dict[str, Any]
    greedy: bool = False

    @property
    def streams(self) -> bool:
        return bool(self.body.get("stream"))


def kinds(paths: Iterable[str]) -> list[Kind]:
    """Those that the server's paths have; a path that this list knows nothing of would go untried."""
    known = [kind for kind in _KINDS if kind.path in paths]
    untried = (
        {path for path in paths if path.startswith("/v1/") and "{" not in path}
        - {kind.path for kind in _KINDS}
        - _NOT_TRIED
    )
    if untried:
        raise ValueError(f"the soak tries no request on {sorted(untried)}; add one to {__file__}")
    return known


def _chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


_NOT_TRIED = {
    *("/v1/models", "/v1/responses/input_tokens", "/v1/messages/count_tokens", "/v1/chat/completions/control"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),  # adapters are off
}
"""They run nothing in the engine; as do those about a request, whose paths have its id."""
_THINK: dict[str, Any] = {"reasoning_mode": "reasoning", "reasoning_logprobs": True, "max_tokens": 48}
_KINDS = [
    Kind("short", CHAT, _chat("What is 17 + 25 + 9?", max_tokens=16, **GREEDY), greedy=True),
    Kind("long prompt", CHAT, _chat("Spell 'abc' backward. " * 60, max_tokens=16, **GREEDY), greedy=True),
    Kind("streamed", CHAT, _chat("What is 8 + 4?", max_tokens=24, stream=True, **GREEDY), greedy=True),
    Kind("thinking", CHAT, _chat("What is 38 + 45?", **_THINK, **GREEDY), greedy=True),
    Kind("budget", CHAT, _chat("What is 123 + 456?", thinking_token_budget=12, **_THINK, **GREEDY), greedy=True),
    Kind("thinking, streamed", CHAT, _chat("What is 5 + 6 + 7?", stream=True, **_THINK, **GREEDY), greedy=True),
    Kind("drawn", CHAT, _chat("Tell me of numbers.", max_tokens=24, temperature=1.0, n=3, stream=True)),
    Kind(
        "schema",
        CHAT,
        _chat(
            "Add 3 and 4.",
            max_tokens=40,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        ),
    ),
    Kind(
        "grammar", CHAT, _chat("Yes or no?", max_tokens=12, structured_outputs={"choice": ["yes", "no"]}, stream=True)
    ),
    Kind("tool", CHAT, _chat("Add 3 and 4.", max_tokens=40, tools=[TOOL], tool_choice="required")),
    Kind(REFUSED, CHAT, _chat("Hi", reasoning_mode="deep")),
    Kind("completion", "/v1/completions", {"prompt": "1, 2, 3,", "max_tokens": 16, "temperature": 0}),
    Kind("completions, streamed", "/v1/completions", {"prompt": ["a b", "c d"], "max_tokens": 16, "stream": True}),
    Kind("responses", "/v1/responses", {"model": "twogear-tiny", "input": "What is 2 + 3?", "max_output_tokens": 24}),
    Kind(
        "responses, streamed",
        "/v1/responses",
        {"model": "twogear-tiny", "input": "What is 2 + 3?", "max_output_tokens": 24, "stream": True},
    ),
    Kind("compaction", "/v1/responses/compact", {"model": "twogear-tiny", "input": "What is 2 + 3? And 4 + 5?"}),
    Kind("messages", "/v1/messages", _chat("What is 2 + 3?", max_tokens=24, model="twogear-tiny")),
    Kind("messages, streamed", "/v1/messages", _chat("Hi", max_tokens=24, model="twogear-tiny", stream=True)),
    Kind("rendered", f"{CHAT}/render", _chat("What is 17 + 25 + 9?", reasoning_mode="reasoning", max_tokens=48)),
    Kind("rendered texts", "/v1/completions/render", {"prompt": ["a b", "c d"], "max_tokens": 16}),
    Kind("rendered message", "/v1/messages/render", _chat("Hi", max_tokens=24, model="twogear-tiny")),
    Kind("rendered response", "/v1/responses/render", {"model": "twogear-tiny", "input": "What is 2 + 3?"}),
    Kind("tokenize", "/tokenize", {"prompt": "what is a token " * 50}),
]
_ONE: dict[str, Any] = {"model": "twogear-tiny", "max_tokens": 1}
GUESTS: dict[str, dict[str, Any]] = {
    CHAT: _chat("Hi", **_ONE),
    "/v1/completions": {"prompt": "1,", **_ONE},
    "/v1/messages": _chat("Hi", **_ONE),
    "/v1/responses": {"model": "twogear-tiny", "input": "Hi", "max_output_tokens": 1},
}
"""What the guest asks, by path."""

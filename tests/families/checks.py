"""What is asked of a family's server, and what has to come back."""

import json
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import httpx

from tests.families.checkpoints import FAMILIES, Family
from tests.server.test_streaming import events_of, gathered, plain

CHAT = "/v1/chat/completions"
QUESTION = "Weather in Köln, 서울?"
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "서울"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
BUDGET = 24
BLOCK = 32
"""Tokens of a page, the fewest that vLLM takes on CPUs."""


class Asking:
    """A family's server, and what one asks of it. `said`: what it said at its start."""

    def __init__(self, name: str, http: httpx.Client, said: Sequence[str]) -> None:
        self.name = name
        self.family: Family = FAMILIES[name]
        self.http = http
        self.said = said
        self.user: dict[str, Any] = {"role": "user", "content": QUESTION}
        self.modes = {
            mode: end for mode, end in zip(("standard", "reasoning"), self.family.ends, strict=True) if end is not None
        }

    def post(self, path: str = CHAT, **fields: Any) -> httpx.Response:
        """An answer, which has to be 200."""
        body = {"messages": [self.user], "temperature": 0, **fields}
        response = self.http.post(path, json=body)
        assert response.status_code == 200, response.text
        return response

    def spelled(self, **fields: Any) -> str:
        """A prompt, tokens spelled."""
        ids = self.post("/tokenize", **fields).json()["tokens"]
        found = self.http.post("/detokenize", json={"tokens": ids}).json()
        return str(found["prompt"])


def profile_is_found(asking: Asking) -> None:
    """The start says which profile it took, and in which form calls are."""
    said = "\n".join(asking.said)
    assert f"profile {asking.name}" in said
    assert f"tool calls as {asking.family.calls}" in said
    assert "No profile is for this model" not in said


def modes_toggle(asking: Asking) -> None:
    """Each mode's prompt ends as the family's templates do, and what the family lacks is refused with the reason."""
    for mode, end in asking.modes.items():
        assert asking.spelled(reasoning_mode=mode).endswith(end)
    for mode in {"standard", "reasoning"} - asking.modes.keys():
        body = {"messages": [asking.user], "reasoning_mode": mode}
        refused = asking.http.post(CHAT, json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reasoning_mode")


def budgets_are_exact(asking: Asking) -> None:
    """Thinking that would go on ends at its last token, and the answer gets the rest."""
    if "reasoning" not in asking.modes:
        return
    for budget in (1, BUDGET):
        fields: dict[str, Any] = {"thinking_token_budget": budget, "max_tokens": budget + 40, "ignore_eos": True}
        answer = asking.post(reasoning_mode="reasoning", **fields).json()
        spent = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
        choice = answer["choices"][0]
        assert spent == budget if choice["reasoning_finish_reason"] == "budget" else spent <= budget
        assert answer["usage"]["completion_tokens"] == budget + 40


def thinking_is_apart(asking: Asking) -> None:
    """Neither thinking nor answer has a special token, streamed and whole alike. A mode without thinking has none,
    unless the model opens it all the same: then it is counted.
    """
    for mode in asking.modes:
        fields: dict[str, Any] = {"reasoning_mode": mode, "max_tokens": 80}
        fields |= {"thinking_token_budget": BUDGET} if mode == "reasoning" else {}
        whole = asking.post(**fields).json()
        streamed = asking.post(**fields, stream=True, stream_options={"include_usage": True}).text
        told, expected = gathered(events_of(streamed)), plain(whole)
        for usage in (told["usage"], expected["usage"]):
            del usage["prompt_tokens_details"]  # the second finds the first one's pages
        assert told == expected, (told, expected)
        message = whole["choices"][0]["message"]
        counted = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert "reasoning_content" in message if mode == "reasoning" else counted or "reasoning_content" not in message
        shown = (message.get("reasoning_content") or "") + (message["content"] or "")
        assert not [token for token in asking.family.special if token in shown], whole


def calls_are_forced(asking: Asking) -> None:
    """The grammar alone makes a random model write calls that are read back as the schema wants them."""
    for mode in asking.modes:
        named = {"type": "function", "function": {"name": "weather"}}
        for choice in ("required", named):
            fields: dict[str, Any] = {"reasoning_mode": mode, "tools": [TOOL], "tool_choice": choice}
            fields |= {"thinking_token_budget": BUDGET} if mode == "reasoning" else {}
            answer = asking.post(**fields, max_tokens=900, parallel_tool_calls=False).json()["choices"][0]
            (call,) = answer["message"]["tool_calls"]
            given = json.loads(call["function"]["arguments"])
            assert (call["function"]["name"], given["city"] in ("Rome", "서울"), given["days"] in (1, 2, 3)) == (
                "weather", True, True,
            ), answer  # fmt: skip
            assert answer["finish_reason"] in ("tool_calls", "stop"), answer


def text_is_free(asking: Asking) -> None:
    """With tools offered and none asked for, an answer is text or calls, and a turn of text goes back as it was."""
    answer = asking.post(tools=[TOOL], max_tokens=40).json()["choices"][0]["message"]
    assert isinstance(answer["content"], str) or answer["tool_calls"]
    choice = asking.post(structured_outputs={"choice": ["Ja 서울", "Nein"]}, max_tokens=120, thinking_token_budget=2)
    assert choice.json()["choices"][0]["message"]["content"] in ("Ja 서울", "Nein")


def pages_are_kept(asking: Asking) -> dict[str, list[int]]:
    """A conversation goes on from the pages of all that its next prompt has in common with the turn before: for a turn
    that is answered, and one with a call, how many tokens were there, and how many could be kept.
    """
    mode = next(reversed(asking.modes))
    common: dict[str, Any] = {"reasoning_mode": mode, "tools": [TOOL], "return_token_ids": True}
    common |= {"thinking_token_budget": 40} if mode == "reasoning" else {}
    shares = {}
    for kind, choice in (("text", "none"), ("call", "required")):
        question = {"role": "user", "content": f"{kind} {QUESTION * 6}"}
        first = asking.post(**common, messages=[question], tool_choice=choice, max_tokens=400).json()
        answered = first["choices"][0]["message"]
        after: dict[str, Any] = {"role": "user", "content": "And now?"}
        if calls := answered.get("tool_calls"):
            after = {"role": "tool", "content": "rain", "tool_call_id": calls[0]["id"]}
        turns = [question, {k: v for k, v in answered.items() if v is not None}, after]
        second = asking.post(**common, messages=turns, tool_choice="none", max_tokens=100).json()
        before = [*first["prompt_token_ids"], *first["choices"][0]["token_ids"]]
        now = second["prompt_token_ids"]
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(before, now, strict=False))))
        cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached <= same
        shares[kind] = [len(before), same, cached]
    return shares


CHECKS: dict[str, Callable[[Asking], Any]] = {
    "profile is found": profile_is_found,
    "modes toggle": modes_toggle,
    "budgets are exact": budgets_are_exact,
    "thinking is apart": thinking_is_apart,
    "calls are forced": calls_are_forced,
    "text is free": text_is_free,
    "pages are kept": pages_are_kept,
}

"""Conversations of ten turns with the real engine: each turn computes its new tokens only, whole pages at a time.

What the engine can have is computed from token ids: every prompt so far with all that was generated after it but the
last token, whose keys and values are never computed. What a turn's `cached_tokens` falls short of that is a miss.
"""

import json
import re
from collections.abc import Iterator
from itertools import cycle, islice, takewhile
from typing import Any

import httpx
import pytest

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT
from server.settings import EMBEDDED_MODEL
from tests.real_server import RealServer

pytestmark = pytest.mark.engine
TURNS = 10
NOTE_TOOL = {
    "type": "function",
    "function": {
        "name": "note",
        "parameters": {
            "type": "object",
            "properties": {
                "day": {"type": "integer", "minimum": 1, "maximum": 31},
                "text": {"type": "string", "maxLength": 24},
            },
            "required": ["day", "text"],
            "additionalProperties": False,
        },
    },
}
FORMAT = ChatFormat.from_folder(EMBEDDED_MODEL)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONG_TURN = {
    "temperature": 1.5,
    "min_tokens": 50,
    "max_tokens": 70,
    # Letter by letter, as the tokenizer would not spell the text; and without an end.
    "logit_bias": {str(token_id): 100 for char in LETTERS for token_id in FORMAT.encode_text(char)},
}
SHORT_CALL = {
    "tools": [NOTE_TOOL],
    "tool_choice": {"type": "function", "function": {"name": "note"}},
    "parallel_tool_calls": False,
    "temperature": 1.5,
    "max_tokens": 120,
}


class Conversation:
    """A growing conversation; `known` are the token sequences of which the engine computed all but the last.

    `prompt` and `generated` are those of the last turn.
    """

    def __init__(self, server: RealServer, opening: str) -> None:
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": opening}]
        self.known: list[list[int]] = []
        self.prompt: list[int] = []
        self.generated: list[int] = []
        self._server = server
        sizes = re.findall(r'twogear_kv_page_tokens\{group="\w+"\} ([\d.]+)', httpx.get(f"{server.url}/metrics").text)
        self._page = max(map(int, map(float, sizes)))

    def ask(self, question: dict[str, Any], mode: str, **fields: Any) -> int:
        """Takes a turn and checks its cached tokens; how many of the last turn's tokens the prompt does not share."""
        self.messages.append(question)
        body = {"messages": self.messages, "reasoning_mode": mode, "return_token_ids": True, "seed": 1, **fields}
        response = httpx.post(f"{self._server.url}/v1/chat/completions", json=body, timeout=120)
        assert response.status_code == 200, response.text
        result = response.json()
        (choice,) = result["choices"]
        message = choice["message"]
        self.messages.append({name: message[name] for name in ("role", "content", "tool_calls") if name in message})
        lost = len(self.prompt) + len(self.generated)
        self.prompt, self.generated = result["prompt_token_ids"], choice["token_ids"]
        assert len(self.prompt) == result["usage"]["prompt_tokens"]
        assert len(self.generated) == result["usage"]["completion_tokens"]
        if self.known:
            lost -= 1 + common(self.prompt, self.known[-1])
        shared = max((common(self.prompt, ids) for ids in self.known), default=0)
        cached = result["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= min(shared, len(self.prompt) - 1) // self._page * self._page
        self.known.append([*self.prompt, *self.generated])
        return lost


def common(one: list[int], other: list[int]) -> int:
    """The length of the longest common beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other[:-1], strict=False)))


def questions(conversation: Conversation) -> Iterator[dict[str, Any]]:
    """What a user says, or a tool's result where the last turn was a call."""
    for number in range(TURNS):
        calls = conversation.messages[-1].get("tool_calls")
        if calls:
            arguments = json.loads(calls[0]["function"]["arguments"])
            content = f"Noted for day {arguments['day']}."
            yield {"role": "tool", "tool_call_id": calls[0]["id"], "content": content}
        else:
            yield {"role": "user", "content": f"Question {number}: what is {number} + {number}? Say more, please."}


@pytest.mark.parametrize("with_tools", [False, True])
def test_standard_turns_compute_only_what_is_new(real_server: RealServer, with_tools: bool) -> None:
    conversation = Conversation(real_server, f"Be brief. {with_tools}")
    tools = [NOTE_TOOL] if with_tools else []
    kinds = cycle([SHORT_CALL, {**LONG_TURN, "tools": tools}] if with_tools else [LONG_TURN])
    for question, fields in zip(questions(conversation), kinds, strict=False):
        assert conversation.ask(question, "standard", **fields) == 0
    anew = FORMAT.render(conversation.messages[:-1], DIRECT, tools)
    assert anew != conversation.prompt, "no turn was spelled otherwise than the tokenizer would: this tests too little"


@pytest.mark.parametrize("with_tools", [False, True])
def test_reasoning_turns_lose_only_what_was_generated(real_server: RealServer, with_tools: bool) -> None:
    conversation = Conversation(real_server, f"Think. {with_tools}")
    thinking = {"thinking_token_budget": 40}
    long_turn = {**LONG_TURN, **thinking, "max_tokens": 110}
    call = {**SHORT_CALL, **thinking, "max_tokens": 160}
    kinds = cycle([call, {**long_turn, "tools": [NOTE_TOOL]}] if with_tools else [long_turn])
    for question, fields in zip(questions(conversation), kinds, strict=False):
        generated = len(conversation.generated)
        # The prompt before it is found again but for its last newline, which closes the empty block too.
        assert conversation.ask(question, "reasoning", **fields) <= generated


def test_modes_may_change_between_turns(real_server: RealServer) -> None:
    conversation = Conversation(real_server, "Sometimes think.")
    modes = islice(cycle(["standard", "reasoning", "standard", "standard", "reasoning"]), TURNS)
    most = 0
    for question, mode in zip(questions(conversation), modes, strict=True):
        fields = {**LONG_TURN, "max_tokens": 110}
        if mode == "reasoning":
            fields["thinking_token_budget"] = 40
        assert conversation.ask(question, mode, **fields) <= most
        most = len(conversation.generated) if mode == "reasoning" else 0

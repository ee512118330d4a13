"""What the server remembers of thoughts before calls: whose they are, which it forgets, what it fills in."""

from typing import Any

import pytest

from server.core.thoughts import CALL_BYTES, WIDEST, Thoughts

OWNER = ("alice", "")


def turn(*ids: str, **fields: Any) -> dict[str, Any]:
    calls = [{"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for call_id in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls, **fields}


def filled(thoughts: Thoughts, message: Any, owner: tuple[str, str] = OWNER) -> Any:
    return thoughts.filled([message], owner)[0].get("reasoning_content")


def test_by_any_of_its_calls_and_by_whose_it_is() -> None:
    thoughts = Thoughts()
    thoughts.remember("hm", ["call_1", "call_2"], OWNER)
    for call_id in ("call_1", "call_2", "toolu_2"):
        assert filled(thoughts, turn(call_id)) == "hm"
    assert filled(thoughts, turn("call_3")) is None
    assert filled(thoughts, turn("call_1"), ("bob", "")) is None
    assert filled(thoughts, turn("call_1"), ("alice", "salt")) is None


@pytest.mark.parametrize(
    "message",
    [
        turn("call_1", reasoning_content="mine"),
        turn("call_1", reasoning="mine"),
        turn("call_1", content=[{"type": "thinking", "thinking": "mine"}]),
        turn("call_1", role="user"),
        {"role": "assistant", "content": "x"},
        {"role": "assistant", "tool_calls": [1, {"id": 2}, {}]},
        {"role": "assistant", "tool_calls": "x"},
    ],
)
def test_what_is_said_or_is_no_turn_with_calls_stays(message: dict[str, Any]) -> None:
    thoughts = Thoughts()
    thoughts.remember("hm", ["call_1"], OWNER)
    assert thoughts.filled([message], OWNER)[0] is message


def test_who_has_most_loses_the_oldest() -> None:
    thoughts = Thoughts(4 * (CALL_BYTES + WIDEST))
    thoughts.remember("b", ["call_b"], ("bob", ""))
    for number in range(50):
        thoughts.remember("a", [f"call_{number}"], OWNER)
        assert thoughts.size <= 4 * (CALL_BYTES + WIDEST)
    assert filled(thoughts, turn("call_b"), ("bob", "")) == "b"
    assert filled(thoughts, turn("call_0")) is None
    assert filled(thoughts, turn("call_49")) == "a"
    thoughts.remember("long" * 4000, ["call_x"], ("carol", ""))
    assert filled(thoughts, turn("call_x"), ("carol", "")) is None
    assert filled(thoughts, turn("call_49")) == "a"


def test_the_same_call_twice_counts_once() -> None:
    thoughts = Thoughts()
    for text in ("one", "two"):
        thoughts.remember(text, ["call_1"], OWNER)
    assert filled(thoughts, turn("call_1")) == "two"
    assert thoughts.size == CALL_BYTES + WIDEST * 3
    thoughts.remember("", ["call_2"], OWNER)
    assert thoughts.size == CALL_BYTES + WIDEST * 3

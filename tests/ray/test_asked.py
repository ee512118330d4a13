"""What the router reads from a body."""

import json

from hypothesis import given
from hypothesis import strategies as st

from deploy.ray.asked import MOST_WORD, UNBOUND, Asked


def asked(**fields: object) -> Asked:
    found = Asked.of(json.dumps({"messages": [{"role": "user", "content": "Hi"}], **fields}).encode())
    assert found is not None
    return found


def test_what_controls_a_request_has_no_prompt() -> None:
    assert Asked.of(b'{"action": "end_reasoning"}') is None
    assert Asked.of(b"") is None
    assert Asked.of(b"[1]") is None


def test_a_next_turn_begins_as_the_one_before() -> None:
    first = [{"role": "user", "content": "A question of some length, so that there is something to share."}]
    second = [*first, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And then?"}]
    before, after = asked(messages=first).prompt, asked(messages=second, reasoning_mode="reasoning").prompt
    assert list(after[: len(before)]) == list(before)
    assert len(after) > len(before)


def test_tools_and_instructions_stand_before_the_messages_wherever_they_stand_in_the_body() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    messages = [{"role": "user", "content": "Hi"}]
    one = Asked.of(json.dumps({"messages": messages, "tools": tools}).encode())
    other = Asked.of(json.dumps({"tools": tools, "messages": messages}).encode())
    assert one == other


def test_requests_are_of_a_kind_if_they_ask_for_the_same_mode() -> None:
    assert asked().kind == asked(max_tokens=5).kind
    kinds = [
        asked(),
        asked(reasoning_mode="reasoning"),
        asked(model="m:reasoning"),
        asked(reasoning_effort="low"),
        asked(thinking={"type": "enabled", "budget_tokens": 5}),
        asked(chat_template_kwargs={"enable_thinking": True}),
    ]
    assert len({one.kind for one in kinds}) == len(kinds)
    assert len(asked(reasoning_mode="x" * 10_000).kind) < 2 * MOST_WORD


def test_the_mode_is_no_part_of_what_pages_are_of() -> None:
    assert asked(model="m:reasoning").salt == asked(model="m").salt == "m"


def test_the_least_limit_counts() -> None:
    assert asked().limit == UNBOUND
    assert asked(max_tokens=50, max_completion_tokens=40).limit == 40
    assert asked(max_tokens="many").limit == UNBOUND


def test_of_a_body_that_was_cut_its_bytes_are_the_prompt() -> None:
    whole = json.dumps({"messages": [{"role": "user", "content": "word " * 1000}]}).encode()
    cut, longer = Asked.of(whole[:2000]), Asked.of(whole[:2400])
    assert cut is not None
    assert longer is not None
    assert list(longer.prompt[:500]) == list(cut.prompt)


@given(st.one_of(st.binary(), st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps)))
def test_nothing_breaks_it(body: bytes | str) -> None:
    Asked.of(body if isinstance(body, bytes) else body.encode())


@given(
    st.dictionaries(
        st.sampled_from(["messages", "model", "tools", "max_tokens", "reasoning", "thinking"]),
        st.integers() | st.text() | st.lists(st.text()),
    )
)
def test_no_field_breaks_it(fields: dict[str, object]) -> None:
    Asked.of(json.dumps(fields).encode())

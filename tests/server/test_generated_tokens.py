"""A conversation that comes back has the ids that the model wrote, and always the text that the client sent."""

import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from server.core.generated_tokens import (
    GENERATION_BYTES,
    MOST_OF_ONE_PROMPT,
    PROMPT_BYTES,
    GeneratedTokens,
    Owner,
)
from tests.fake_engine import FakeEngine
from tests.server.conftest import Client, always, body
from tests.server.test_streaming import events_of, gathered

PIECES = st.sampled_from(["a", "b", "What", " is", " 12", "3", "\n", "é", "😀", " "])


def spelled(fmt: ChatFormat, pieces: list[str]) -> list[int]:
    """A spelling of the pieces' text that the tokenizer's own seldom is: each piece by itself."""
    return [token_id for piece in pieces for token_id in fmt.encode_text(piece)]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@given(answers=st.lists(st.lists(PIECES, min_size=1, max_size=6), min_size=1, max_size=4))
def test_a_conversation_keeps_the_ids_that_were_written(fmt: ChatFormat, answers: list[list[str]]) -> None:
    written = GeneratedTokens(fmt)
    conversation: list[dict[str, Any]] = []
    known: list[int] = []
    for pieces in answers:
        conversation.append(user("Go on"))
        plain = fmt.render(conversation, DIRECT)
        prompt = written.restored(plain)
        assert prompt[: len(known)] == known
        assert fmt.decode(prompt, show_control=True) == fmt.decode(plain, show_control=True)
        known = [*prompt, *spelled(fmt, pieces), fmt.end_of_turn_id]
        written.remember(prompt, known[len(prompt) :])
        conversation.append(assistant("".join(pieces)))


@pytest.mark.parametrize("arguments", ['{"a": "é"}', '{"a":"é"}', '{ "a":\t"\\u00e9" }'])
def test_calls_keep_their_ids_too(fmt: ChatFormat, arguments: str) -> None:
    written = GeneratedTokens(fmt)
    prompt = fmt.render([user("Hi")], DIRECT)
    call = spelled(fmt, list('{"name": "f", "arguments": ' + arguments + "}"))
    ids = [*spelled(fmt, ["s", "o", "\n"]), fmt.tool_call_id, *call, fmt.tool_call_end_id, fmt.end_of_turn_id]
    written.remember(prompt, ids)
    function = {"name": "f", "arguments": arguments}
    message = {**assistant("so"), "tool_calls": [{"type": "function", "function": function}]}
    again = fmt.render([user("Hi"), message, {"role": "tool", "content": "1"}], DIRECT)
    assert again[: len(prompt) + len(ids)] != [*prompt, *ids]
    assert written.restored(again)[: len(prompt) + len(ids)] == [*prompt, *ids]
    other = {**message, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]}
    again = fmt.render([user("Hi"), other], DIRECT)
    assert written.restored(again) == again


@given(
    first=st.lists(PIECES, min_size=1, max_size=6),
    second=st.lists(PIECES, min_size=1, max_size=6),
    sent=st.lists(PIECES, max_size=6),
)
def test_text_is_never_changed(fmt: ChatFormat, first: list[str], second: list[str], sent: list[str]) -> None:
    written = GeneratedTokens(fmt)
    prompt = fmt.render([user("Hi")], DIRECT)
    for pieces in (first, second):
        written.remember(prompt, spelled(fmt, pieces))
    for question in ("Hi", "Ho"):
        plain = fmt.render([user(question), assistant("".join(sent)), user("And?")], DIRECT)
        restored = written.restored(plain)
        assert fmt.decode(restored, show_control=True) == fmt.decode(plain, show_control=True)
        assert [i for i in restored if i in fmt.control_ids] == [i for i in plain if i in fmt.control_ids]
        if question == "Ho":
            assert restored == plain


def test_several_answers_to_one_prompt(fmt: ChatFormat) -> None:
    written = GeneratedTokens(fmt)
    prompt = fmt.render([user("Hi")], DIRECT)
    texts = [f"What{number}" for number in range(MOST_OF_ONE_PROMPT)]
    for text in texts:
        written.remember(prompt, [*spelled(fmt, list(text)), fmt.end_of_turn_id])
    for text in texts:
        again = written.restored(fmt.render([user("Hi"), assistant(text), user("And?")], DIRECT))
        ids = spelled(fmt, list(text))
        assert again[len(prompt) : len(prompt) + len(ids) + 1] == [*ids, fmt.end_of_turn_id]


def kept(written: GeneratedTokens, fmt: ChatFormat, ids: list[int], owner: Owner = ("", "", 0)) -> list[bool]:
    """Of the prompts "0" to "9", after which "What" was written as `ids`: whether that is known still."""
    prompts = [fmt.render([user(f"{number}")], DIRECT) for number in range(10)]
    again = [fmt.render([user(f"{number}"), assistant("What")], DIRECT) for number in range(10)]
    return [
        written.restored(plain, owner)[: len(prompt) + len(ids)] == [*prompt, *ids]
        for prompt, plain in zip(prompts, again, strict=True)
    ]


def test_the_oldest_are_forgotten(fmt: ChatFormat) -> None:
    ids = spelled(fmt, list("What"))
    written = GeneratedTokens(fmt, most_bytes=5 * (PROMPT_BYTES + GENERATION_BYTES + 4 * len(ids)))
    for number in range(10):
        written.remember(fmt.render([user(f"{number}")], DIRECT), ids)
    assert kept(written, fmt, ids) == [False] * 5 + [True] * 5


@pytest.mark.parametrize("other", [("key", "", 0), ("", "salt", 0), ("key", "salt", 0), ("", "", 1)])
def test_nobody_changes_another_ones_prompt(fmt: ChatFormat, other: Owner) -> None:
    """Neither by what they make the model write, nor by making it write so much that the other's is forgotten."""
    ids = spelled(fmt, list("What"))
    own = ("", "", 0) if other[0] else ("victim", "", 0)
    written = GeneratedTokens(fmt, most_bytes=20 * (PROMPT_BYTES + GENERATION_BYTES + 4 * len(ids)))
    for number in range(10):
        written.remember(fmt.render([user(f"{number}")], DIRECT), ids, own)
    assert (kept(written, fmt, ids, own), kept(written, fmt, ids, other)) == ([True] * 10, [False] * 10)
    for number in range(1000):
        written.remember(fmt.render([user(f"x{number}")], DIRECT), ids, other)
    assert kept(written, fmt, ids, own) == [True] * 10


@pytest.mark.parametrize("length", [1, 10, 1000])
def test_what_it_takes_is_counted(fmt: ChatFormat, length: int) -> None:
    written = GeneratedTokens(fmt)
    ids = fmt.encode_text("a") * length
    prompts = [fmt.render([user(f"{number}")], DIRECT) for number in range(1000)]
    tracemalloc.start()
    for number, prompt in enumerate(prompts):
        written.remember(prompt, ids, (f"{number % 7}", f"{number}", 0))
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken <= written.size <= 3 * taken
    for prompt in prompts[:100]:
        for number in range(2 * MOST_OF_ONE_PROMPT):
            written.remember(prompt, [*ids, number + 100], ("", "", 0))
    generation = GENERATION_BYTES + 4 * (length + 1)
    first, then = PROMPT_BYTES + generation - 4, PROMPT_BYTES + MOST_OF_ONE_PROMPT * generation
    assert written.size == 1000 * first + 100 * then


def test_nothing_is_remembered_where_there_is_no_room(fmt: ChatFormat) -> None:
    written = GeneratedTokens(fmt, most_bytes=0)
    ids = spelled(fmt, list("What"))
    written.remember(fmt.render([user("0")], DIRECT), ids)
    assert kept(written, fmt, ids) == [False] * 10
    assert written.size == 0


def test_thinking_is_not_looked_for(fmt: ChatFormat) -> None:
    """Its prompt does not come back, so nothing is found; the text stays."""
    written = GeneratedTokens(fmt)
    prompt = fmt.render([user("Hi")], THINKING)
    written.remember(prompt, [*spelled(fmt, ["W", "hat"]), *fmt.close_thinking(), *spelled(fmt, ["W", "hat"])])
    plain = fmt.render([user("Hi"), assistant("What"), user("And?")], THINKING)
    assert written.restored(plain) == plain


@pytest.mark.parametrize("stream", [True, False])
async def test_the_next_request_has_them(client: Client, fmt: ChatFormat, stream: bool) -> None:
    ids = [*spelled(fmt, list("What is")), fmt.end_of_turn_id]
    assert ids[:-1] != fmt.encode_text("What is")
    engine = FakeEngine(always(ids), (fmt.end_of_turn_id,))
    conversation = [user("Hi")]
    async with client(engine) as http:
        for _ in range(3):
            asked = body(messages=conversation)
            if stream:
                fields = {"stream": True, "stream_options": {"include_usage": True}}
                response = await http.post("/v1/chat/completions", json={**asked, **fields})
                text = gathered(events_of(response.text))["choices"][0]["content"]
            else:
                text = (await http.post("/v1/chat/completions", json=asked)).json()["choices"][0]["message"]["content"]
            prompt = engine.seen[-1].prompt_ids
            conversation += [assistant(text), user("And?")]
            tokens = (await http.post("/tokenize", json=body(messages=conversation))).json()["tokens"]
            assert tokens[: len(prompt) + len(ids)] == [*prompt, *ids]


@pytest.mark.parametrize("salt", ["other", None])
async def test_another_salt_does_not_have_them(client: Client, fmt: ChatFormat, salt: str | None) -> None:
    ids = [*spelled(fmt, list("What is")), fmt.end_of_turn_id]
    engine = FakeEngine(always(ids), (fmt.end_of_turn_id,))
    conversation = [user("Hi"), assistant("What is"), user("And?")]
    async with client(engine) as http:
        await http.post("/v1/chat/completions", json=body(messages=conversation[:1], cache_salt="mine"))
        counts = [
            (await http.post("/tokenize", json=body(messages=conversation, cache_salt=one))).json()["count"]
            for one in ("mine", salt)
        ]
    assert counts[0] > counts[1] == len(fmt.render(conversation, DIRECT))

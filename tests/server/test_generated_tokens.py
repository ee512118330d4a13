"""A conversation that comes back has the ids that the model wrote, and always the text that the client sent."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_templates.format import ChatFormat
from chat_templates.settings import DIRECT, THINKING
from server.core.generated_tokens import MOST_OF_ONE_PROMPT, GeneratedTokens
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


def test_the_oldest_are_forgotten(fmt: ChatFormat) -> None:
    written = GeneratedTokens(fmt, most_tokens=20)
    ids = spelled(fmt, list("What"))
    prompts = [fmt.render([user(f"{number}")], DIRECT) for number in range(10)]
    for prompt in prompts:
        written.remember(prompt, ids)
    again = [fmt.render([user(f"{number}"), assistant("What")], DIRECT) for number in range(10)]
    kept = [
        written.restored(plain)[: len(prompt) + len(ids)] == [*prompt, *ids]
        for prompt, plain in zip(prompts, again, strict=True)
    ]
    assert kept == [False] * 5 + [True] * 5


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

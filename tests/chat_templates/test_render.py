"""Prompts and training text: structure, loss mask, prefixes from turn to turn."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_templates.events import AnswerText, ReasoningText, ToolCallArguments, ToolCallStart
from chat_templates.format import ChatFormat
from chat_templates.parser import OutputParser
from chat_templates.settings import DIRECT, THINKING
from tests.chat_templates.conversations import CONVERSATIONS, call, reference_text, user
from tests.chat_templates.small_tokenizers import KINDS, byte_level, make_format, sentencepiece
from tests.chat_templates.strategies import contents, messages
from tests.styles import STYLES, Mode

EMBEDDED = Path(__file__).parents[2] / "models" / "twogear-tiny"
FORMATS = {kind: make_format(kind) for kind in KINDS} | {"embedded": ChatFormat.from_folder(EMBEDDED)}
MODES: tuple[Mode, Mode] = ("standard", "reasoning")
BYTE_LEVEL = ("byte_level", "whole_words", "embedded")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_text_is_that_of_the_plain_renderer(kind: str, name: str, mode: Mode) -> None:
    fmt = FORMATS[kind]
    conversation, tools = CONVERSATIONS[name]
    text = fmt.decode(fmt.render(conversation, STYLES[mode], tools), show_control=True)
    assert text == reference_text(conversation, mode, tools)


@pytest.mark.parametrize("name", ["plain", "system", "tools"])
def test_ids_are_those_of_the_whole_text(name: str) -> None:
    """For text without tags in it the tokenizer itself, fed with the whole prompt, gives the same ids."""
    conversation, tools = CONVERSATIONS[name]
    for kind, tokenizer in {"byte_level": byte_level(), "sentencepiece": sentencepiece()}.items():
        ids = FORMATS[kind].render(conversation, DIRECT, tools)
        assert ids == tokenizer.encode(reference_text(conversation, "standard", tools), add_special_tokens=False).ids


answered = st.tuples(messages, contents, st.text(max_size=8)).map(
    lambda drawn: [*drawn[0], {"role": "assistant", "content": drawn[1], "reasoning_content": drawn[2]}]
)


@settings(max_examples=40)
@given(answered, st.sampled_from(MODES), st.sampled_from(sorted(FORMATS)))
def test_prompt_is_a_prefix_of_the_training_text(conversation: list[dict[str, Any]], mode: Mode, kind: str) -> None:
    fmt = FORMATS[kind]
    ids, mask = fmt.render_conversation(conversation, STYLES[mode])
    prompt = fmt.render(conversation[:-1], STYLES[mode])
    assert ids[: len(prompt)] == prompt
    assert all(mask[len(prompt) :])
    assert ids[-1] == fmt.end_of_turn_id
    is_plain_prompt = mode == "reasoning" or all(message["role"] != "assistant" for message in conversation[:-1])
    assert not (is_plain_prompt and any(mask[: len(prompt)]))


def _learnt(fmt: ChatFormat, conversation: list[dict[str, Any]], mode: Mode) -> str:
    ids, mask = fmt.render_conversation(conversation, STYLES[mode])
    return fmt.decode([token_id for token_id, is_learnt in zip(ids, mask, strict=True) if is_learnt], show_control=True)


def test_what_is_learnt() -> None:
    fmt = FORMATS["byte_level"]
    conversation, _ = CONVERSATIONS["multi_turn"]
    assert _learnt(fmt, conversation, "standard") == "Hello! How can I help?[|endofturn|]5[|endofturn|]"
    assert _learnt(fmt, conversation, "reasoning") == "2 + 3\nis 5.\n</think>\n\n5[|endofturn|]"


def test_learnt_without_reasoning_closes_the_block_at_once() -> None:
    conversation = [user("Hi"), {"role": "assistant", "content": "Hello"}]
    assert _learnt(FORMATS["byte_level"], conversation, "reasoning") == "\n</think>\n\nHello[|endofturn|]"


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_learnt_parses_back(kind: str, mode: Mode) -> None:
    """The training target, read as if it had been generated, is the message that it was made of."""
    fmt = FORMATS[kind]
    calls = [call("now", '{"a": ["}", 1]}'), call("now", "{}")]
    message = {"role": "assistant", "content": "Two calls.", "reasoning_content": "Hm,\n2.", "tool_calls": calls}
    ids, mask = fmt.render_conversation([user("Hi"), message], STYLES[mode])
    parser = OutputParser(fmt, thinking_open=mode == "reasoning", call_id=lambda: "id")
    events = parser.feed(ids[mask.index(True) :]) + parser.finish()
    assert [event.text for event in events if isinstance(event, ReasoningText)] == ["Hm,\n2."] * (mode == "reasoning")
    assert [event.text for event in events if isinstance(event, AnswerText)] == ["Two calls."]
    assert [event.name for event in events if isinstance(event, ToolCallStart)] == ["now", "now"]
    assert [event.text for event in events if isinstance(event, ToolCallArguments)] == ['{"a": ["}", 1]}', "{}"]


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_a_growing_conversation_extends_its_prefix(kind: str) -> None:
    """Prompt and generated ids of a turn begin the next turn's prompt, so its pages can be used again."""
    fmt = FORMATS[kind]
    conversation: list[dict[str, Any]] = [{"role": "system", "content": "Be kind."}]
    known: list[int] = []
    for text, answer in [
        ("Hello", "Hello! How are you?"),
        ("\n\n2 + 3?", "\n  5\n"),
        ("  안녕?", " 안녕 😀"),
        ("End", ""),
    ]:
        conversation.append(user(text))
        prompt = fmt.render(conversation, DIRECT)
        assert prompt[: len(known)] == known
        known = [*prompt, *fmt.encode_text(answer), fmt.end_of_turn_id]
        conversation.append({"role": "assistant", "content": answer})


@pytest.mark.parametrize("kind", BYTE_LEVEL)
def test_dropped_thinking_keeps_all_that_is_before_it(kind: str) -> None:
    fmt = FORMATS[kind]
    first = [user("Hello, what is 2 + 3?")]
    second = [*first, {"role": "assistant", "content": "5", "reasoning_content": "Easy."}, user("Sure?")]
    prompt = fmt.render(first, THINKING)
    generated = [*fmt.encode_text("Easy."), *fmt.close_thinking(), *fmt.encode_text("5"), fmt.end_of_turn_id]
    again = fmt.render(second, THINKING)
    assert again[: len(prompt) - 1] == prompt[:-1]  # all but the newline, which now closes the block too
    tail = generated[generated.index(fmt.think_end_id) :]
    assert tail == again[again.index(fmt.think_end_id) :][: len(tail)]


def test_continuing_the_last_message() -> None:
    fmt = FORMATS["byte_level"]

    def prompt(mode: Mode, **message: Any) -> str:
        conversation = [user("Hi"), {"role": "assistant", **message}]
        ids = fmt.render(conversation, STYLES[mode], continue_final_message=True)
        assert fmt.is_thinking_open(ids) == ("</think>" not in fmt.decode(ids, show_control=True))
        return fmt.decode(ids, show_control=True).removeprefix("[|user|]\nHi[|endofturn|]\n[|assistant|]\n")

    assert prompt("standard", content="Hel") == "<think>\n\n</think>\n\nHel"
    assert prompt("standard", content="") == "<think>\n\n</think>\n\n"
    assert prompt("reasoning", content="", reasoning_content="So") == "<think>\nSo"
    assert prompt("reasoning", content="") == "<think>\n"
    assert prompt("reasoning", content="Hel", reasoning_content="So") == "<think>\nSo\n</think>\n\nHel"


def test_without_generation_prompt() -> None:
    fmt = FORMATS["byte_level"]
    ids = fmt.render([user("Hi")], THINKING, add_generation_prompt=False)
    assert fmt.decode(ids, show_control=True) == "[|user|]\nHi[|endofturn|]\n"


@pytest.mark.parametrize("mode", MODES)
def test_whether_the_prompt_leaves_thinking_open(mode: Mode) -> None:
    fmt = FORMATS["byte_level"]
    assert fmt.is_thinking_open(fmt.render([user("<think>"), user("</think>")], STYLES[mode])) == (mode == "reasoning")
    assert not fmt.is_thinking_open([])


def test_closing_the_thinking() -> None:
    fmt = FORMATS["byte_level"]
    assert fmt.decode(fmt.close_thinking(" Enough <think>."), show_control=True) == " Enough <think>.\n</think>\n\n"
    assert fmt.close_thinking().count(fmt.think_end_id) == 1


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys, chat_templates.format, chat_templates.parser\n"
        "print(*{'torch', 'transformers', 'vllm', 'server', 'model_impl'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""

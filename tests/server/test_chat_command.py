"""`twogear chat` against a real HTTP server around a scripted engine, where nobody sits at a terminal; its parts."""

import functools
import io
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from chat_templates.format import ChatFormat
from server.access.keys import Key, KeyFile, hash_of
from server.app import create_app
from server.cli import main
from server.commands.chat.conversation import Conversation, Progress, Run
from server.commands.chat.conversation import Settings as ChatSettings
from server.commands.chat.markdown import Blocks, harmless, rendered
from server.commands.chat.saved import exported
from server.engine_client import EngineStatus
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.scripted_server import InOnePiece, serving
from tests.server.test_cli import error_of
from tests.server.test_launch import Running


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    answer = [*fmt.encode_text("It is 4.\x1b[2J"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("2 and 2"), *fmt.close_thinking()]
    return FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer), (fmt.end_of_turn_id,)
    )


@pytest.fixture
def url(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> Iterator[str]:
    running = Running(engine, profile, fmt)
    yield running.url
    running.server.should_exit = True
    running.thread.join()


def talk(url: str, typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a person sees who types these lines."""
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert main(["chat", "--url", url]) == 0
    return capsys.readouterr().out


def test_a_conversation_in_both_modes(
    url: str, engine: FakeEngine, fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", "--url", url, "--mode", "fast"]) == 2
    assert "--mode fast: this server has standard, reasoning" in capsys.readouterr().err
    out = talk(url, "2 + 2?\n/mode reasoning\n/mode fast\nagain\n/new\nand again\n/quit\n", monkeypatch, capsys)
    assert out.count("It is 4.") == 3
    assert out.count("2 and 2") == 2
    assert "\x1b[2J" not in out
    first, second, third = (request.prompt_ids for request in engine.seen)
    assert fmt.is_thinking_open(second)
    assert not fmt.is_thinking_open(first)
    assert "It is 4." in fmt.decode(second)
    assert "It is 4." not in fmt.decode(third)


def test_no_rate_is_shown_of_what_came_in_one_piece(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with serving(InOnePiece(create_app(engine, Settings(), profile, fmt))) as url:
        out = talk(url, "/mode reasoning\n2 + 2?\n", monkeypatch, capsys)
    assert " · too quick for a rate · prompt " in out
    assert "tokens/s" not in out


@pytest.mark.parametrize(
    ("first_tokens", "last_token", "rate"),
    [(1, 250.0, 4000 / 150), (4, 250.0, None), (1, 109.0, None), (1, None, None)],
)
def test_a_rate_is_of_tokens_that_came_after_the_first(
    first_tokens: int, last_token: float | None, rate: float | None
) -> None:
    progress = Progress(completion_tokens=5, first_token=100.0, first_tokens=first_tokens, last_token=last_token)
    assert progress.token_rate == rate


def test_a_server_that_cannot_answer_tells_why(
    url: str, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.status = EngineStatus("loading", "the weights", 0.5)
    assert "the model is loading, 50%: the weights" in talk(url, "hi\n", monkeypatch, capsys).lower()
    engine.status, engine.fail_after = EngineStatus("ready", "", 1.0), 2
    assert "engine lost" in talk(url, "hi\n", monkeypatch, capsys).lower()


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("/mde reasoning", "There is no /mde; did you mean /mode?"),
        ("/mode fast", "There is no mode 'fast'; twogear-tiny has standard, reasoning."),
        ("/budget many", "/budget many: a number of tokens is needed, as /budget 500, or /budget off."),
        ("/budget -1", "a number of tokens is needed"),
        ("/set heat 3", "/set heat: there is no such field; there are temperature, top_p"),
        ("/set top_k 1.5", "/set top_k 1.5: a whole number is needed, or off."),
        ("/save", "/save needs the name of a file, as /save chat.json."),
        ("/save chat.json", "There is nothing to save yet."),
        ("/load", "/load needs the name of a file, as /load chat.json."),
        ("/load no-such.json", "no-such.json cannot be read: No such file or directory."),
        ("/use reasoning", "Nothing was said yet."),
        ("/retry", "Nothing was said yet."),
        ("/both", "Nothing was said yet."),
        ("/model other", "There is no model 'other'; the server has twogear-tiny."),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_what_would_be_right(
    url: str, typed: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in talk(url, f"{typed}\n", monkeypatch, capsys)


def test_what_the_commands_say(
    url: str, engine: FakeEngine, fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["/help", "/mode", "/model", "/budget 3", "/budget off", "/system Be brief.", "/system off", "/system"]
    typed += ["/set seed 7", "/set temperature 0.5", "/set seed off", "/set", "//etc/hosts?", "/use standard", "/use x"]
    out = talk(url, "\n".join(typed), monkeypatch, capsys)
    for told in (
        "/save [FILE]  ", "Ctrl-C  ", "The mode is standard; twogear-tiny has standard, reasoning.",
        "The model is twogear-tiny;", "at most 3 tokens", "as much as the mode allows", "prompt: Be brief.",
        "There is no system prompt.", "Set: seed 7, temperature 0.5.", "Set: temperature 0.5.",
        "goes on from standard mode's answer", "/use x: the last message was answered in standard.",
    ):  # fmt: skip
        assert told in out
    assert "/etc/hosts?" in fmt.decode(engine.seen[0].prompt_ids)
    assert "//etc" not in fmt.decode(engine.seen[0].prompt_ids)


def test_a_message_is_asked_again_in_place_of_its_answer(
    url: str, engine: FakeEngine, fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = talk(url, "2 + 2?\n/retry reasoning\n/both\nand 3?\n", monkeypatch, capsys)
    assert out.count("It is 4.") == 5
    assert "[standard]" in out
    assert "[reasoning]" in out
    assert all("It is 4." not in fmt.decode(request.prompt_ids) for request in engine.seen[:4])
    assert fmt.decode(engine.seen[4].prompt_ids).count("It is 4.") == 1


def test_saving(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = tmp_path / "chat.json", tmp_path / "other.json"
    other.write_text("mine")
    typed = ["/mode reasoning", "2 + 2?", f"/save {other}", f"/save {tmp_path}/no/x.json", f"/save {file}", "/both"]
    out = talk(url, "\n".join([*typed, "/save", "/new", "/save"]), monkeypatch, capsys)
    assert f"{other} is there already; name another file." in out
    assert "no/x.json cannot be written: No such file or directory." in out
    assert out.count(f"Saved to {file}") == 2
    assert "/save needs the name of a file" in out
    assert other.read_text() == "mine"
    saved = json.loads(file.read_text())
    assert (saved["format"], saved["version"]) == ("twogear-conversations", 1)
    (conversation,) = saved["conversations"]
    question, answer = conversation["turns"]
    assert (conversation["title"], conversation["settings"]["mode"]) == ("2 + 2?", "reasoning")
    assert question == {"role": "user", "text": "2 + 2?"}
    assert [run["mode"] for run in answer["runs"]] == ["standard", "reasoning"]
    assert answer["chosen"] == 1
    run = answer["runs"][1]
    assert (run["thinks"], run["thinking"], run["progress"]["phase"]) == (True, "2 and 2", "done")
    assert run["answer"].startswith("It is 4.")
    assert run["progress"]["reasoningTokens"] > 0
    assert run["body"]["messages"] == [{"role": "user", "content": "2 + 2?"}]


SAVED = Conversation(settings=ChatSettings(model="twogear-tiny", mode="reasoning"), title="Hi", updated=1)
SAVED.add("Hi", [Run(mode="reasoning", thinks=True, body={}, answer="Hello.")], 0)


def changed(path: str, value: Any) -> str:
    """A saved conversation with `value` at `path`, in JSON."""
    file = json.loads(exported([SAVED]))
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    functools.reduce(lambda at, step: at[step], way, file)[last] = value
    return json.dumps(file)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("not JSON", "it is no JSON."),
        ("[]", "it is no file of conversations"),
        ("{}", 'its "format" is not "twogear-conversations"'),
        (changed("version", 7), "it has version 7"),
        (changed("conversations", []), "there is no conversation in it"),
        (changed("conversations.0.title", 3), "Expected `str`, got `int` - at `$.conversations[0].title`"),
        (changed("conversations.0.turns.0.role", "tool"), "calls of tools are for the page alone"),
        (changed("conversations.0.turns.1.role", "user"), "Object missing required field `text`"),
        (changed("conversations.0.turns.1", {"role": "user", "text": "Hm"}), "do not follow each other in turn"),
        (changed("conversations.0.turns.1.chosen", 2), "the chosen answer, 2, is none of 1"),
        (changed("conversations.0.settings.budget", "much"), "its thinking budget, much, is no number of tokens"),
        (changed("conversations.0.settings.sampling", {"heat": "1"}), "it sets heat; what can be set is temperature"),
        (changed("conversations.0.settings.sampling", {"seed": "x"}), "its seed, x, is no number"),
    ],
)
def test_a_file_that_cannot_be_loaded_says_why(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *,
    content: str, told: str,
) -> None:  # fmt: skip
    file = tmp_path / "chat.json"
    file.write_text(content)
    out = talk(url, f"/load {file}\n/mode\n", monkeypatch, capsys)
    assert f"{file} was not loaded: " in out
    assert told in out
    assert "The mode is standard" in out


def test_of_several_the_newest_is_loaded_and_the_others_are_not_written_over(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the page exports them: with a model that is not served any more, and fields that were left empty."""
    settings = ChatSettings(model="gone", mode="reasoning", sampling={"seed": " ", "top_p": "0.5"})
    newer = Conversation(settings=settings, title="Later", updated=SAVED.updated + 1, turns=SAVED.turns)
    file = tmp_path / "chat.json"
    file.write_bytes(before := exported([SAVED, newer]))
    out = talk(url, f"/load {file}\n/set\n/save\n2 + 2?\n", monkeypatch, capsys)
    assert f"Loaded Later from {file}, the newest of 2." in out
    assert "It was with gone, and goes on with twogear-tiny." in out
    assert "Set: top_p 0.5." in out
    assert "/save needs the name of a file" in out
    assert "It is 4." in out
    assert file.read_bytes() == before


def test_a_key(
    engine: FakeEngine, profile: Profile, fmt: ChatFormat, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("TWOGEAR_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    keys = KeyFile(keys=(Key(name="reader", hash=hash_of(b"sk-reader")),))
    with serving(create_app(engine, Settings(), profile, fmt, keys=keys)) as url:
        assert "--api-key, or TWOGEAR_API_KEY in the environment" in error_of(["chat", "--url", url], capsys)
        assert "cannot be sent in a header" in error_of(["chat", "--url", url, "--api-key", "schlüssel"], capsys)
        monkeypatch.setattr("sys.stdin", io.StringIO("2 + 2?\n"))
        assert main(["chat", "--url", url, "--api-key", "sk-reader"]) == 0
    assert "It is 4." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [("[]", "not as twogear does"), ('{"data": []}', "not as twogear does"), ('{"data": [{"id": "m"}]}', "not as tw")],
)
def test_another_server_is_told_apart(content: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await Response(content, media_type="application/json")(scope, receive, send)

    with serving(app) as url:
        assert told in error_of(["chat", "--url", url], capsys)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\n", "a    b\n"),
        ("\x1b[2J\x07\r\x9bx\x00", "[2Jx"),
        ("👩\u200d💻 می\u200cخواهم", "👩\u200d💻 می\u200cخواهم"),
        ("evil\u202etxt\u2066", "eviltxt"),
        ("half \ud83d", "half "),
    ],
)
def test_nothing_that_a_terminal_obeys_is_shown(text: str, shown: str) -> None:
    assert harmless(text) == shown


MARKDOWN = """# Head
Text
goes on.

1. one

   more of it
2. two

3. three

```py
a

b
```
| a | b |
|---|---|
| 1 | 2 |


~~~
```

~~~

end
"""
BLOCKS = [
    "# Head\nText\ngoes on.",
    "1. one\n\n   more of it\n2. two\n\n3. three",
    "```py\na\n\nb\n```\n| a | b |\n|---|---|\n| 1 | 2 |",
    "~~~\n```\n\n~~~",
]


@given(st.lists(st.integers(0, len(MARKDOWN)), max_size=20).map(sorted))
def test_blocks_are_the_same_however_the_text_comes(cuts: list[int]) -> None:
    blocks = Blocks()
    whole = []
    for start, end in pairwise([0, *cuts, len(MARKDOWN)]):
        whole += blocks.add(MARKDOWN[start:end])
    assert [*whole, "\n".join(blocks.rest)] == [*BLOCKS, "end\n"]


@given(st.text(alphabet="ab `~-1.\n\t", max_size=200))
def test_no_line_of_markdown_is_lost(text: str) -> None:
    blocks = Blocks()
    whole = "\n".join([*blocks.add(text), *blocks.rest])
    assert written_lines(whole) == written_lines(text)


def written_lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.split("\n") if line.strip()]


def test_a_link_shows_where_it_leads() -> None:
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=80).print(rendered("[bank](https://evil.example)"))
    assert "https://evil.example" in out.getvalue()
    assert "\x1b]8" not in out.getvalue()

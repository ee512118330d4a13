"""`twogear chat` in a pseudo-terminal, as a person uses it, with a scripted model behind a real HTTP server."""

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from chat_templates.format import ChatFormat
from server.commands.chat.conversation import LEAST_SPAN
from server.engine_client import EngineStatus
from server.modes.profile import Profile
from tests.fake_engine import FakeEngine
from tests.real_server import RealServer
from tests.scripted_server import app_of, serving
from tests.server.terminal import Terminal

TWOGEAR = str(Path(sys.executable).parent / "twogear")
CTRL_C, CTRL_D, ENTER, UP = "\x03", "\x04", "\r", "\x1b[A"
LONG = " ".join(f"{number}:{number * 7919 % 10007}" for number in range(3000))
"""Text without loops, which the server would end."""


IMPATIENT = """
import sys
from server.commands.chat import generation
from server.cli import main
generation.STALL_SECONDS = 0.5
sys.exit(main())
"""
"""`twogear` that tells of a stall after half a second."""


class Model:
    """Thinks `thought` where it may, and answers what `answers` has for the words of the last message.

    `slow`: each token takes a while, so that a person can interrupt. `pause_after`: after so many tokens nothing comes.
    """

    def __init__(self, fmt: ChatFormat) -> None:
        self.thought = "hm, hm"
        self.answers: dict[str, str] = {}
        self.slow = False
        self.pause_after: int | None = None
        self._steps = 0
        self._fmt = fmt
        self.engine = FakeEngine(self._script, (fmt.end_of_turn_id,), max_context=100_000, step=self._step)

    @property
    def asked(self) -> list[str]:
        """The prompts."""
        return [self._fmt.decode(request.prompt_ids, show_control=True) for request in self.engine.seen]

    def _script(self, prompt_ids: list[int]) -> Iterator[int]:
        fmt = self._fmt
        thinking = [*fmt.encode_text(self.thought), fmt.think_end_id] if fmt.is_thinking_open(prompt_ids) else []
        prompt = fmt.decode(prompt_ids)
        found = [(prompt.rfind(words), answer) for words, answer in self.answers.items()]
        answer = max(found)[1] if found and max(found)[0] >= 0 else "Hello."
        return iter([*thinking, *fmt.encode_text(answer), fmt.end_of_turn_id])

    async def _step(self) -> None:
        while self.pause_after is not None and self._steps >= self.pause_after:  # noqa: ASYNC110 - set by the test
            await asyncio.sleep(0.05)
        self._steps += 1
        await asyncio.sleep(0.005 if self.slow else 0)


@pytest.fixture
def model(fmt: ChatFormat) -> Model:
    return Model(fmt)


@pytest.fixture
def url(model: Model, profile: Profile, fmt: ChatFormat) -> Iterator[str]:
    with serving(app_of(model.engine, profile, fmt)) as url:
        yield url


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Begins `twogear chat` with the server at a URL; each of a test has the same folder of state."""
    with ExitStack() as terminals:

        def begin(url: str, *arguments: str, command: Sequence[str] = (TWOGEAR,), **more: Any) -> Terminal:
            environment = {"XDG_STATE_HOME": str(tmp_path / "state"), **more.pop("environment", {})}
            terminal = Terminal([*command, "chat", "--url", url, *arguments], environment, **more)
            return terminals.enter_context(terminal)

        yield begin


def test_a_conversation(chat: Callable[..., Terminal], url: str, model: Model) -> None:
    model.answers = {"Hi": "It is **4**.\n\n- one\n- two\n\n```python\nif x:\n\treturn\n```", "Who?": "Hello."}
    terminal = chat(url)
    terminal.wait_for("twogear-tiny in standard mode; /mode standard|reasoning switches, /help tells the rest.")
    terminal.wait_for_prompt("standard>")
    terminal.type("Hi\r")
    terminal.wait_for("It is 4.", " • one", "if x:", "    return", " tokens · ", " · prompt ")
    terminal.wait_for_prompt("standard>")
    assert "**" not in terminal.text
    assert "\x1b[1m4\x1b[0m" in terminal.raw
    terminal.type("/mode reasoning\r")
    terminal.wait_for_prompt("reasoning>")
    terminal.type("Who?\r")
    terminal.wait_for("hm, hm", "Hello.", " thinking, ", " answer · ")
    assert "\x1b[2mh" in terminal.raw
    terminal.wait_for_prompt("reasoning>")
    assert "It is **4**." in model.asked[-1]
    terminal.type(CTRL_D)
    assert terminal.wait_for_end() == 0


def test_leaving_by_ctrl_c_empties_the_line_first(chat: Callable[..., Terminal], url: str) -> None:
    terminal = chat(url)
    terminal.wait_for_prompt("standard>")
    terminal.type("not sent")
    terminal.wait_for_prompt("standard> not sent")
    terminal.type(CTRL_C)
    terminal.wait_for_prompt("standard>")
    terminal.type(CTRL_C)
    assert terminal.wait_for_end() == 0


def test_an_interrupt_ends_the_thinking_and_then_the_answer(
    chat: Callable[..., Terminal], url: str, model: Model
) -> None:
    model.thought, model.answers, model.slow = LONG, {"Hi": LONG}, True
    terminal = chat(url, "--mode", "reasoning")
    terminal.wait_for_prompt("reasoning>")
    terminal.type("Hi\r")
    terminal.wait_for("10:")
    terminal.type(CTRL_C)
    terminal.wait_for("0:0", times=2)
    terminal.type(CTRL_C)
    terminal.wait_for("thinking told to answer · stopped")
    terminal.wait_for_prompt("reasoning>")
    terminal.type(CTRL_C)
    assert terminal.wait_for_end() == 0


def test_what_is_pasted_stays_one_message(chat: Callable[..., Terminal], url: str, model: Model) -> None:
    terminal = chat(url)
    for number, pasted in enumerate(["\x1b[200~one\ntwo\n/quit\x1b[201~", "one\rtwo\r/quit", "one\x1b\rtwo\n/quit"], 1):
        terminal.wait_for_prompt("standard>")
        terminal.type(pasted)
        terminal.wait_for("... /quit", times=number)
        terminal.type(ENTER)
        terminal.wait_for("Hello.", times=number)
    assert all("one\ntwo\n/quit" in prompt for prompt in model.asked)
    assert len(model.asked) == 3


def test_history_is_kept_between_sessions(
    chat: Callable[..., Terminal], url: str, model: Model, tmp_path: Path
) -> None:
    for typed in ("What is 2 + 2?\r", UP + ENTER):
        terminal = chat(url)
        terminal.wait_for_prompt("standard>")
        terminal.type(typed)
        terminal.wait_for("standard> What is 2 + 2?", "Hello.")
        terminal.wait_for_prompt("standard>")
        terminal.type(CTRL_D)
        assert terminal.wait_for_end() == 0
    assert ["2 + 2" in prompt for prompt in model.asked] == [True, True]
    file = tmp_path / "state" / "twogear" / "chat-history"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_history_that_cannot_be_kept_is_said(chat: Callable[..., Terminal], url: str, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("no folder")
    terminal = chat(url)
    terminal.wait_for("What is typed is not kept for the next session")
    terminal.wait_for_prompt("standard>")


def test_every_mode_at_once(chat: Callable[..., Terminal], url: str, model: Model, tmp_path: Path) -> None:
    model.answers = {"Hi": "Good *day*."}
    terminal = chat(url)
    terminal.wait_for_prompt("standard>")
    terminal.type("/both Hi\r")
    terminal.wait_for("Good day.", times=2)
    terminal.wait_for("prompt ", times=2)
    heads = next(line for line in terminal.text.split("\n") if line.startswith("standard ─"))
    assert "reasoning ─" in heads
    assert len(model.asked) == 2
    terminal.type("/use reasoning\r")
    terminal.wait_for("goes on from reasoning mode's answer")
    terminal.type(f"/save {tmp_path / 'saved.json'}\r")
    terminal.wait_for("the server's page imports it")
    (saved,) = json.loads((tmp_path / "saved.json").read_text())["conversations"]
    assert saved["turns"][1]["chosen"] == 1


def test_narrow_terminals_show_one_below_the_other(chat: Callable[..., Terminal], url: str, model: Model) -> None:
    terminal = chat(url, columns=50)
    terminal.wait_for_prompt("standard>")
    terminal.type("/both Hi\r")
    terminal.wait_for("Hello.", times=2)
    terminal.wait_for_prompt("standard>")
    heads = [line for line in terminal.text.split("\n") if "─" in line]
    assert [head.partition(" ")[0] for head in heads] == ["standard", "reasoning"]


def test_settings_reach_the_server(chat: Callable[..., Terminal], url: str, model: Model) -> None:
    model.thought = "one two three four five six seven eight nine ten"
    terminal = chat(url, "--mode", "reasoning")
    terminal.wait_for_prompt("reasoning>")
    terminal.type("/budget 5\r")
    terminal.wait_for_prompt("reasoning 5>")
    terminal.type("/system Speak as a pirate.\r")
    terminal.wait_for("The system prompt: Speak as a pirate.")
    terminal.type("/set temperature 0.25\r")
    terminal.wait_for("Set: temperature 0.25.")
    terminal.type("Hi\r")
    terminal.wait_for("5 thinking", "thinking ended by its budget")
    assert "Speak as a pirate." in model.asked[0]
    assert model.engine.seen[0].sampling.temperature == 0.25


def test_a_saved_conversation_goes_on(chat: Callable[..., Terminal], url: str, model: Model, tmp_path: Path) -> None:
    model.answers = {"Hi": "Good *day*."}
    file = tmp_path / "saved.json"
    terminal = chat(url)
    terminal.wait_for_prompt("standard>")
    terminal.type("/system Be kind.\r")
    terminal.wait_for("The system prompt: Be kind.")
    terminal.type("/mode reasoning\r")
    terminal.wait_for_prompt("reasoning>")
    terminal.type("/budget 50\r")
    terminal.wait_for_prompt("reasoning 50>")
    terminal.type("Hi\r")
    terminal.wait_for("Good day.", " · prompt ")
    terminal.wait_for_prompt("reasoning 50>")
    terminal.type(f"/save {file}\r")
    terminal.wait_for("the server's page imports it")
    terminal.type(CTRL_D)
    assert terminal.wait_for_end() == 0
    again = chat(url)
    again.wait_for_prompt("standard>")
    again.type(f"/load {file}\r")
    again.wait_for("reasoning> Hi", "hm, hm", "Good day.", " · prompt ", f"Loaded Hi from {file}.")
    again.wait_for_prompt("reasoning 50>")
    again.type("And you?\r")
    again.wait_for("prompt ", times=2)
    assert all(words in model.asked[-1] for words in ("Be kind.", "Hi", "Good *day*.", "And you?"))
    again.type("/save\r")
    again.wait_for(f"Saved to {file}")
    (saved,) = json.loads(file.read_text())["conversations"]
    assert [turn["role"] for turn in saved["turns"]] == ["user", "assistant"] * 2


def test_a_stream_that_stalls_is_told(chat: Callable[..., Terminal], url: str, model: Model) -> None:
    model.answers, model.pause_after = {"Hi": "one two three"}, 1
    terminal = chat(url, command=(sys.executable, "-c", IMPATIENT))
    terminal.wait_for_prompt("standard>")
    terminal.type("Hi\r")
    terminal.wait_for("Nothing has come for a while; the connection is still open. Ctrl-C ends it.")
    terminal.type(CTRL_C)
    terminal.wait_for("stopped")
    terminal.wait_for_prompt("standard>")
    terminal.type("/both Hi\r")
    terminal.wait_for("Nothing has come for a while", times=3)
    model.pause_after = None
    terminal.wait_for("one two three", "prompt ", times=2)


def test_a_rate_is_shown_of_tokens_that_came_one_after_the_other(
    chat: Callable[..., Terminal], url: str, model: Model
) -> None:
    model.answers, model.pause_after = {"Hi": "one two three"}, 2
    terminal = chat(url)
    terminal.wait_for_prompt("standard>")
    terminal.type("Hi\r")
    terminal.wait_for("\none")
    time.sleep(2 * LEAST_SPAN / 1000)
    model.pause_after = None
    terminal.wait_for("one two three", " tokens/s · prompt ")


class Cutting:
    """`app` that cuts every connection while `is_down`."""

    def __init__(self, app: ASGIApp) -> None:
        self.is_down = False
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.is_down or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"transfer-encoding", b"chunked")]})
        await send({"type": "http.response.body", "body": b":", "more_body": True})
        # Without an end: the connection is closed.


def test_a_lost_server_is_waited_for(
    chat: Callable[..., Terminal], model: Model, profile: Profile, fmt: ChatFormat
) -> None:
    app = Cutting(app_of(model.engine, profile, fmt))
    with serving(app) as url:
        terminal = chat(url)
        terminal.wait_for_prompt("standard>")
        app.is_down = True
        terminal.type("Hi\r")
        terminal.wait_for("The server was lost (", "Waits for the server; Ctrl-C ends that.")
        app.is_down = False
        terminal.wait_for("asking again", "Hello.")
        terminal.wait_for_prompt("standard>")


def test_what_was_typed_is_kept_when_waiting_ends(chat: Callable[..., Terminal], url: str, model: Model) -> None:
    terminal = chat(url)
    terminal.wait_for_prompt("standard>")
    model.engine.status = EngineStatus("loading", "the weights", 0.5)
    terminal.type("Hi\r")
    terminal.wait_for("50%: the weights", "Waits for the server; Ctrl-C ends that.")
    terminal.type(CTRL_C)
    terminal.wait_for_prompt("standard> Hi")
    model.engine.status = EngineStatus("ready", "", 1.0)
    terminal.type("!\r")
    terminal.wait_for("Hello.")
    assert "Hi!" in model.asked[0]


def test_an_answer_that_was_cut_can_be_asked_for_again(chat: Callable[..., Terminal], url: str, model: Model) -> None:
    model.answers, model.engine.fail_after = {"Hi": LONG}, 20
    terminal = chat(url)
    terminal.wait_for_prompt("standard>")
    terminal.type("Hi\r")
    terminal.wait_for("0:0 ", "Engine lost.")
    terminal.wait_for_prompt("standard> Hi")
    model.answers, model.engine.fail_after = {}, None
    terminal.type(ENTER)
    terminal.wait_for("Hello.")
    assert "0:0" not in model.asked[-1]


def test_a_message_over_the_context_is_kept(chat: Callable[..., Terminal], url: str, model: Model) -> None:
    assert model.engine.ready is not None
    model.engine.ready = msgspec.structs.replace(model.engine.ready, max_context=20)
    terminal = chat(url)
    terminal.wait_for_prompt("standard>")
    message = "word " * 20 + "end"
    terminal.type(f"{message}\r")
    terminal.wait_for("maximum context length is 20 tokens")
    terminal.wait_for_prompt(f"standard> {message}")


def test_what_is_typed_meanwhile_is_not_shown_and_comes_next(
    chat: Callable[..., Terminal], url: str, model: Model
) -> None:
    model.answers, model.slow = {"Hi": "a b c d e f g h i j k l m n o p q r s t u v w x y z", "then?": "Hello."}, True
    terminal = chat(url)
    terminal.wait_for_prompt("standard>")
    terminal.type("Hi\r")
    terminal.wait_for("a b")
    terminal.type("And then?\r")
    terminal.wait_for("y z", "standard> And then?", "Hello.")
    assert terminal.text.count("And then?") == 1


@pytest.mark.engine
def test_the_real_model(chat: Callable[..., Terminal], real_server: RealServer) -> None:
    terminal = chat(f"{real_server.url}/v1", "--mode", "reasoning")
    terminal.wait_for_prompt("reasoning>")
    terminal.type("/set temperature 0\r")
    terminal.wait_for("Set: temperature 0.")
    terminal.type("What is 303 + 948 - 105?\r")
    terminal.wait_for("\n1146\n", " thinking, ", " · prompt ")
    terminal.wait_for_prompt("reasoning>")
    terminal.type("/new\r")
    terminal.wait_for("A new conversation")
    terminal.type("/both What is 38 + 45?\r")
    terminal.wait_for("prompt ", times=3)
    terminal.wait_for_prompt("reasoning>")
    assert terminal.text.count("83 ") + terminal.text.count("83\n") >= 2

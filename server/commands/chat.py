"""`twogear chat`: a terminal conversation with a running server through its HTTP API, thinking shown dimmed."""

import argparse
import select
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus

import httpx
import orjson
from rich.console import Console

from server.access.keys import client_headers
from server.cli_errors import UsageError
from server.settings import Settings
from server.urls import server_url

with suppress(ImportError):  # some builds of Python come without
    import readline  # noqa: F401 - gives `input` line editing, history, and pastes that are one piece

HELP = "talk to a running server in the terminal"
DEFAULTS = Settings()
CONNECT_SECONDS = 5.0
PASTE_SECONDS = 0.05
"""Within which the next line of what is pasted has come."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the server is and how to begin."""
    default = f"http://{DEFAULTS.host}:{DEFAULTS.port}"
    parser.add_argument("--url", type=server_url, default=default, help="where the server is, with /v1 or without")
    parser.add_argument("--mode", help="the mode to begin in, one of the server's; left out, the server's default")


def run(args: argparse.Namespace) -> int:
    """Talks until the input ends. Raises UsageError when no server can be talked to."""
    console = Console(highlight=False)
    timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
    try:
        with httpx.Client(base_url=args.url, timeout=timeout, headers=client_headers()) as http:
            chat = _start(http, console, args.mode)
            console.print(f"{chat.model} in {chat.mode} mode; {chat.commands}.", style="dim", markup=False)
            chat.talk()
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise UsageError(f"no server answers at {args.url}; start one with twogear serve, or give --url") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UsageError(f"the connection to {args.url} failed: {str(error) or type(error).__name__}") from error
    return 0


def _start(http: httpx.Client, console: Console, mode: str | None) -> "Chat":
    """A conversation in `mode`, or in the server's default; raises UsageError for a mode that the server has not."""
    response = http.get("/v1/models")
    if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise UsageError(f"{http.base_url} wants another API key; the environment's TWOGEAR_API_KEY is what it gets")
    try:
        listed = [(str(model["id"]), str(model["reasoning_mode"])) for model in response.json()["data"]]
        name, default = listed[0]
    except (ValueError, LookupError, TypeError) as error:
        raise UsageError(f"{http.base_url} answers, but not as twogear does") from error
    modes = [of_alias for _, of_alias in listed[1:]]
    if mode not in (None, *modes):
        raise UsageError(f"--mode {mode}: this server has {', '.join(modes)}")
    return Chat(http, console, name, modes, mode or default)


@dataclass
class Chat:
    """One conversation; `messages` is what was said so far, `modes` are the server's."""

    http: httpx.Client
    console: Console
    model: str
    modes: list[str]
    mode: str
    messages: list[dict[str, str]] = field(default_factory=list)

    @property
    def commands(self) -> str:
        """What can be typed beside messages."""
        return f"/mode {'|'.join(self.modes)} switches, /new starts afresh, /quit (or Ctrl-D) leaves"

    def talk(self) -> None:
        """Reads lines and answers them until the input ends."""
        while True:
            try:
                line = read_message(f"{self.mode}> ").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line == "/quit":
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._answer(line)

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        if name == "/mode" and argument in self.modes:
            self.mode = argument
        elif name == "/new":
            self.messages.clear()
        else:
            self._say(self.commands + ".", style="dim", end="\n")

    def _answer(self, line: str) -> None:
        """Shows the answer as it comes. Ctrl-C stops it and keeps what was said."""
        asked = [*self.messages, {"role": "user", "content": line}]
        answer, thought = "", False
        try:
            for kind, text in self._stream(asked):
                if kind == "reasoning":
                    thought = True
                    self._say(text, style="dim")
                else:
                    self._say("\n" + text if thought and not answer else text)
                    answer += text
        except ChatError as error:
            self._say(str(error), style="red", end="\n")
            return
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            self._say(f"\nThe server was lost ({reason}). Say it again once it is back.", style="red", end="\n")
            return
        except KeyboardInterrupt:
            pass
        self._say("\n")
        self.messages = [*asked, {"role": "assistant", "content": answer}]

    def _stream(self, messages: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
        """Pieces of "reasoning" and "content"; raises ChatError with the server's reason."""
        body = {"model": self.model, "messages": messages, "reasoning_mode": self.mode, "stream": True}
        with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                raise ChatError(_reason(response.read()))
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if not line or data == "[DONE]":
                    continue
                chunk = orjson.loads(data)
                if "error" in chunk:
                    raise ChatError(_reason(data.encode()))
                delta = chunk["choices"][0]["delta"]
                thinking = delta.get("reasoning") or delta.get("reasoning_content")  # the server may show either
                if thinking:
                    yield "reasoning", thinking
                if delta.get("content"):
                    yield "content", delta["content"]

    def _say(self, text: str, style: str | None = None, end: str = "") -> None:
        # A model's control characters could do anything to a terminal.
        text = "".join(character for character in text if character.isprintable() or character == "\n")
        self.console.print(text, style=style, end=end, markup=False, soft_wrap=True)


def read_message(prompt: str) -> str:
    """What a person types up to Enter, with editing and history; lines that are pasted together are one message.

    Raises EOFError at the end of the input.
    """
    lines = [input(prompt)]
    while sys.stdin.isatty() and select.select([sys.stdin], [], [], PASTE_SECONDS)[0]:
        lines.append(input())
    return "\n".join(lines)


class ChatError(Exception):
    """The server did not answer; the message says why."""


def _reason(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")

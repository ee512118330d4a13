"""Reads what a person types: with editing, history and pastes on a terminal, line by line from a pipe."""

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

CONTINUED = "... "
HISTORY_NAME = "chat-history"


class Reader(Protocol):
    """Where messages come from."""

    async def read(self, prompt: str, draft: str = "") -> str:
        """The next message; `draft` is already typed for the person. Raises EOFError at the end."""


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where state is kept between sessions, as the XDG base directories have it."""
    return Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "twogear"


def open_history(folder: Path) -> tuple[History, str]:
    """What was typed in former sessions, and why it is not kept, if it is not. Only its owner can read the file."""
    path = folder / HISTORY_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        return InMemoryHistory(), f"What is typed is not kept for the next session: {path}: {error.strerror}."
    return KeptHistory(path), ""


class KeptHistory(FileHistory):
    """In a file; where the disk is full, a line is kept for this session only."""

    def store_string(self, string: str) -> None:
        """Called with each message."""
        with suppress(OSError):
            super().store_string(string)


class WordCompleter(Completer):
    """Completes commands, and the words that may stand after each."""

    def __init__(self, words: Callable[[], Mapping[str, Sequence[str]]]) -> None:
        self._words = words

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002
        """Of the word before the cursor, where it stands in a command."""
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, begun = text.partition(" ")
        words, begun = (self._words().get(name, ()), begun) if space else (list(self._words()), name)
        yield from (Completion(word, -len(begun)) for word in words if word.startswith(begun))


class LineEditor:
    """A person at a terminal.

    Enter sends, Alt-Enter or Ctrl-J begins a new line, and a paste of many lines stays one message. Ctrl-C empties the
    line; on an empty line it ends the input, as Ctrl-D does. `words`: the commands, with what may stand after each.
    """

    def __init__(self, history: History, words: Callable[[], Mapping[str, Sequence[str]]]) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=history, completer=WordCompleter(words), complete_while_typing=False, key_bindings=_keys(),
            multiline=True, prompt_continuation=CONTINUED, enable_open_in_editor=True,
        )  # fmt: skip

    async def read(self, prompt: str, draft: str = "") -> str:
        """The next message; `draft` is already typed for the person. Raises EOFError at the end."""
        return await self._session.prompt_async(prompt, default=draft)


class PipeReader:
    """Text from elsewhere: each line is a message."""

    async def read(self, prompt: str, draft: str = "") -> str:  # noqa: ARG002
        """The next line. Raises EOFError at the end."""
        with _interruptible():
            line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")


@contextmanager
def unechoed() -> Iterator[None]:
    """Keeps what is typed while an answer comes for the next line, as it is and unseen; Ctrl-C still interrupts."""
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet = termios.tcgetattr(descriptor)
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lets Ctrl-C raise KeyboardInterrupt at once, where the event loop waits for nothing but this."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        # Where more keys came with this one, lines were pasted into a terminal that does not mark pastes.
        others = [press for press in event.key_processor.input_queue if press.key not in (Keys.CPRResponse, "?")]
        if others:
            event.current_buffer.newline(copy_margin=False)
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _break(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-c")
    def _clear_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=EOFError)

    return keys

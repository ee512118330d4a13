"""A pseudo-terminal with a program in it: types as a person does, and shows what a person would see."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import pexpect
import pyte

WAIT_SECONDS = 90.0
"""How long anything may take on a busy machine."""
STEP_SECONDS = 0.2


class _Screen(pyte.HistoryScreen):
    """One that says where its cursor is when it is asked, as terminals do."""

    answer: Callable[[str], object]

    def write_process_input(self, data: str) -> None:
        self.answer(data)


class Terminal:
    """Runs `command` from `with` to its end. `raw`: all that it wrote."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], columns: int = 160, rows: int = 40
    ) -> None:
        self.raw = ""
        self._screen = _Screen(columns, rows, history=10_000, ratio=0.5)
        self._stream = pyte.Stream(self._screen)
        self._process = pexpect.spawn(
            command[0], list(command[1:]), env={**os.environ, "TERM": "xterm-256color", **environment},
            dimensions=(rows, columns), encoding="utf-8", echo=False,
        )  # fmt: skip
        self._process.delaybeforesend = None
        self._screen.answer = self._process.send

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close(force=True)

    @property
    def text(self) -> str:
        """All lines, those that have scrolled away too."""
        above = [
            "".join(line[column].data for column in range(self._screen.columns)) for line in self._screen.history.top
        ]
        return "\n".join(line.rstrip() for line in [*above, *self._screen.display])

    @property
    def last_line(self) -> str:
        """The last line that is not empty."""
        return next((line for line in reversed(self.text.split("\n")) if line), "")

    def type(self, text: str) -> None:
        """Sends keys as they are; Enter is a carriage return."""
        self._process.send(text)

    def wait_for(self, *texts: str, times: int = 1) -> None:
        """Until each of the texts is on the screen, or above it, so many times."""
        until = time.monotonic() + WAIT_SECONDS
        while not all(self.text.count(text) >= times for text in texts):
            assert time.monotonic() < until, f"{texts} did not come {times} times:\n{self.text}"
            self._read()

    def wait_for_prompt(self, prompt: str) -> None:
        """Until the program asks, and nothing is typed yet."""
        until = time.monotonic() + WAIT_SECONDS
        while self.last_line != prompt:
            assert time.monotonic() < until, f"{prompt!r} did not come:\n{self.text}"
            self._read()

    def wait_for_end(self) -> int:
        """Until the program has ended: its exit code."""
        until = time.monotonic() + WAIT_SECONDS
        while self._process.isalive() or self._read():
            assert time.monotonic() < until, f"it did not end:\n{self.text}"
            self._read()
        return int(self._process.exitstatus)

    def _read(self) -> bool:
        try:
            came = self._process.read_nonblocking(4096, STEP_SECONDS)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += came
        self._stream.feed(came)
        return True

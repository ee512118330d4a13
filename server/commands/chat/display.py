"""What a person sees: notes, thinking dimmed, answers as Markdown, exact figures, several answers side by side.

Where the output is no terminal, the texts are written as the model wrote them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.status import Status
from rich.table import Table
from rich.text import Text

from server.commands.chat.conversation import Progress, Run
from server.commands.chat.markdown import REDRAWS_PER_SECOND, MarkdownStream, Tail, harmless, rendered

LEAST_COLUMN = 36
"""Characters below which answers stand one below the other."""
PEEK = 4000
"""Characters of a thought that are drawn again and again while it grows beside another."""
THINKING_ENDS = {
    "budget": "thinking ended by its budget",
    "repetition": "thinking closed for going in circles",
    "confident": "thinking closed, the answer being known",
    "length": "thinking ended by the token limit",
    "stopped": "thinking told to answer",
}
STALLED = "Nothing has come for a while; the connection is still open. Ctrl-C ends it."
FINISHES = {"length": "ended by the token limit", "tool_calls": "calls a tool"}


class View(Protocol):
    """Shows answers while they come."""

    def show(self, run: Run, thought: str, said: str) -> None:
        """A piece of a run's thinking or answer."""

    def stalled(self, run: Run) -> None:
        """Nothing has come of a run for a while, though its connection is open."""

    def close(self) -> None:
        """All have ended: shows the rest, and the figures."""


class Display:
    """The terminal, or what stands in its place."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def note(self, text: str) -> None:
        """Something about the conversation, as a line."""
        self._line(as_note(text))

    def problem(self, text: str) -> None:
        """Something that went wrong."""
        self._line(Text(harmless(text), "red"))

    def view(self, runs: Sequence[Run]) -> View:
        """For answers that come now."""
        if len(runs) == 1:
            return OneAnswer(self.console, runs[0])
        return SideBySide(self.console, runs) if self.console.is_terminal else OneByOne(self.console, runs)

    def past(self, text: str, run: Run) -> None:
        """What was said before, and its answer."""
        self._line(Text(harmless(f"{run.mode}> {text}"), "bold"))
        if self.console.is_terminal:
            self.console.print(_whole(run))
        else:
            OneByOne(self.console, [run]).close()

    @contextmanager
    def waiting(self, why: str) -> Iterator[Status]:
        """Shows meanwhile what is waited for; `update` shows another reason."""
        with self.console.status(as_note(why)) as status:
            yield status

    def _line(self, text: Text) -> None:
        self.console.print(text, soft_wrap=not self.console.is_terminal)


def as_note(text: str) -> Text:
    """Dimmed."""
    return Text(harmless(text), "dim")


class OneAnswer:
    """One answer: its thinking dimmed, then its Markdown, each as it comes."""

    def __init__(self, console: Console, run: Run) -> None:
        self._console = console
        self._run = run
        self._markdown = MarkdownStream(console) if console.is_terminal else None
        self._waiting = console.status(Text(f"waits for {run.mode} mode's first token", style="dim"))
        self._waits = console.is_terminal
        self._last = "\n"
        if self._waits:
            self._waiting.start()

    def show(self, run: Run, thought: str, said: str) -> None:
        """A piece of the run's thinking or answer."""
        self._begin()
        if thought:
            self._write(thought, "dim")
        if said:
            if len(run.answer) == len(said) and run.thinking:
                self._end_line()
            self._say(said)

    def stalled(self, run: Run) -> None:
        """Said once, below what came so far; in a file it would stand among the texts."""
        if self._console.is_terminal:
            if not run.answer:
                self._end_line()
            self._console.print(as_note(STALLED))

    def close(self) -> None:
        """It has ended: shows the rest, and the figures."""
        self._begin()
        if self._markdown is not None:
            if not self._run.answer:
                self._end_line()
            self._markdown.close()
        self._end_line()
        if line := figures(self._run.progress):
            self._console.print(Text(line, "dim"), soft_wrap=not self._console.is_terminal)

    def _begin(self) -> None:
        if self._waits:
            self._waiting.stop()
            self._waits = False

    def _say(self, text: str) -> None:
        if self._markdown is None:
            self._write(text)
        else:
            self._last = "\n"
            self._markdown.add(harmless(text))

    def _write(self, text: str, style: str = "") -> None:
        text = harmless(text)
        self._last = text[-1:] or self._last
        self._console.print(Text(text, style), end="", soft_wrap=True)

    def _end_line(self) -> None:
        if self._last != "\n":
            self._console.print()
            self._last = "\n"


class OneByOne:
    """Several answers on what is no terminal: whole, one below the other."""

    def __init__(self, console: Console, runs: Sequence[Run]) -> None:
        self._console = console
        self._runs = runs

    def show(self, run: Run, thought: str, said: str) -> None:
        """Nothing yet."""

    def stalled(self, run: Run) -> None:
        """Nothing: nobody waits in front of it."""

    def close(self) -> None:
        """Each under its mode."""
        for run in self._runs:
            self._console.print(f"[{run.mode}]", markup=False)
            view = OneAnswer(self._console, run)
            if run.thinking:
                view.show(Run(mode=run.mode, thinks=True, body={}, thinking=run.thinking), run.thinking, "")
            if run.answer:
                view.show(run, "", run.answer)
            view.close()


class SideBySide:
    """Several answers in columns: their last lines while they grow, then all of them."""

    def __init__(self, console: Console, runs: Sequence[Run]) -> None:
        self._console = console
        self._runs = runs
        self._live = Live(
            console=console, get_renderable=self._now, transient=True, refresh_per_second=REDRAWS_PER_SECOND,
            redirect_stdout=False, redirect_stderr=False, vertical_overflow="visible",
        )  # fmt: skip
        self._live.start()

    def show(self, run: Run, thought: str, said: str) -> None:
        """Nothing to do: the next redraw shows what the run has."""

    def stalled(self, run: Run) -> None:
        """Nothing to do: the next redraw says so."""

    def close(self) -> None:
        """All have ended: shows all of them."""
        self._live.stop()
        self._console.print(self._beside([_whole(run) for run in self._runs]))

    def _now(self) -> RenderableType:
        beside = self._is_wide
        height = self._console.height - 1 if beside else self._console.height // len(self._runs)
        return self._beside([Tail(_peek(run), height) for run in self._runs])

    @property
    def _is_wide(self) -> bool:
        return self._console.width // len(self._runs) >= LEAST_COLUMN

    def _beside(self, parts: Sequence[RenderableType]) -> RenderableType:
        heads = [Rule(Text(run.mode, "bold"), style="dim", align="left") for run in self._runs]
        cells = [Group(head, part) for head, part in zip(heads, parts, strict=True)]
        if not self._is_wide:
            return Group(*cells)
        table = Table.grid(expand=True, padding=(0, 3, 0, 0))
        for _ in cells:
            table.add_column(ratio=1)
        table.add_row(*cells)
        return table


def _whole(run: Run) -> RenderableType:
    thinking = [Text(harmless(run.thinking.strip("\n")), "dim")] if run.thinking else []
    answer = [rendered(harmless(run.answer))] if run.answer else []
    return Group(*thinking, *answer, Text(figures(run.progress), "dim"))


def _peek(run: Run) -> RenderableType:
    """As much as may be on view, as it is written: the whole is drawn at the end."""
    parts = [Text(harmless(run.thinking[-PEEK:]), "dim"), Text(harmless(run.answer[-PEEK:]))]
    counted = Text(_counted(run.progress) if run.progress.completion_tokens else "waits for its first token", "dim")
    stalled = [as_note(STALLED)] if run.progress.stalled else []
    return Group(*(part for part in parts if part.plain), counted, *stalled)


def figures(progress: Progress) -> str:
    """What an answer took: tokens, seconds, tokens per second, and how it ended where that is not by itself."""
    if not progress.completion_tokens:
        return "stopped" if progress.phase == "stopped" else ""
    first = progress.first_token
    cached = f", {progress.cached_tokens:,} cached" if progress.cached_tokens else ""
    parts = [
        _counted(progress),
        f"{duration(progress.elapsed)}, first after {duration(first)}" if first is not None else None,
        _rate(progress),
        f"prompt {progress.prompt_tokens:,}{cached}",
        THINKING_ENDS.get(progress.reasoning_finish or ""),
        FINISHES.get(progress.finish or ""),
        "stopped" if progress.phase == "stopped" else None,
    ]
    return " · ".join(part for part in parts if part)


def _rate(progress: Progress) -> str | None:
    if (rate := progress.token_rate) is not None:
        return f"{rate:,.0f} tokens/s"
    quick = progress.phase == "done" and progress.last_token is not None and progress.completion_tokens > 1
    return "too quick for a rate" if quick else None


def _counted(progress: Progress) -> str:
    whole, thinking = progress.completion_tokens, progress.reasoning_tokens
    counted = f"{whole:,} {'token' if whole == 1 else 'tokens'}"
    return f"{counted}: {thinking:,} thinking, {whole - thinking:,} answer" if thinking else counted


def duration(milliseconds: float) -> str:
    """As people read it."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {seconds % 60:.0f} s"

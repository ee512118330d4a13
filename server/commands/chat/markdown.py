"""Text of a model in a terminal: Markdown that grows, and nothing in it that a terminal would obey."""

import re
import unicodedata

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

REDRAWS_PER_SECOND = 10
LARGE_BLOCK = 200
"""Lines of a block from which on it is shown as it is written until it is whole, since drawing it takes long."""
TAB = "    "
TURNS_AROUND = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Let text stand in another order than it is written in."""
FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)")
ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])\s")


def harmless(text: str) -> str:
    """The text without characters that move the cursor, change the terminal, or hide what is there."""
    return "".join(_harmless(character) for character in text)


def _harmless(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    if character == "\t":
        return TAB
    # Of the rest, joiners, soft hyphens and the like belong to text; control characters do not.
    is_format = unicodedata.category(character) == "Cf" and character not in TURNS_AROUND
    return character if is_format else ""


def rendered(text: str) -> RenderableType:
    """Links are written out: the terminal would else hide where they lead."""
    return _Trimmed(Markdown(text, code_theme="ansi_dark", hyperlinks=False))


class _Trimmed:
    """Without the empty lines that lists and code have around them."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._content, options.update(height=None), pad=False)
        full = [number for number, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        for line in lines[full[0] : full[-1] + 1] if full else ():
            yield from line
            yield Segment.line()


class Tail:
    """The last lines of something: at most so many as are given, or as the terminal has."""

    def __init__(self, content: RenderableType, height: int | None = None) -> None:
        self._content = content
        self._height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._content, options.update(height=None), pad=False)
        for line in lines[-max((self._height or console.height) - 1, 1) :]:
            yield from line
            yield Segment.line()


class Blocks:
    """Cuts growing Markdown into blocks that stand for themselves: at blank lines, but not in code and lists."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._begun = ""
        self._fence: str | None = None

    @property
    def rest(self) -> list[str]:
        """The lines of the block that may go on."""
        return [*self._lines, self._begun]

    def add(self, text: str) -> list[str]:
        """The blocks that became whole by it."""
        *lines, self._begun = (self._begun + text).split("\n")
        return [block for line in lines if (block := self._add_line(line)) is not None]

    def _add_line(self, line: str) -> str | None:
        block = None
        if self._begins_block(line):
            block = "\n".join(self._lines).rstrip()
            self._lines.clear()
        if line.strip() or self._lines:
            self._lines.append(line)
        if found := FENCE.match(line):
            marks, behind = found.groups()
            if self._fence is None:
                self._fence = marks
            elif marks.startswith(self._fence) and not behind.strip():
                self._fence = None
        return block

    def _begins_block(self, line: str) -> bool:
        if self._fence is not None or not self._lines or self._lines[-1].strip():
            return False
        goes_on = not line.strip() or line[0].isspace()
        return not goes_on and not (ITEM.match(line) and ITEM.match(self._lines[0]))


class MarkdownStream:
    """Prints whole blocks for good, and draws the last one again while it grows."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._blocks = Blocks()
        self._printed = False
        self._live = Live(
            console=console, get_renderable=self._tail, transient=True, refresh_per_second=REDRAWS_PER_SECOND,
            redirect_stdout=False, redirect_stderr=False, vertical_overflow="visible",
        )  # fmt: skip

    def add(self, text: str) -> None:
        """More of the text, of which nothing can do harm."""
        if not self._live.is_started:
            self._live.start()
        for block in self._blocks.add(text):
            self._print(block)

    def close(self) -> None:
        """Prints what is left."""
        rest = "\n".join(self._blocks.rest).strip("\n")
        self._blocks = Blocks()
        self._live.stop()
        if rest:
            self._print(rest)

    def _print(self, block: str) -> None:
        if self._printed:
            self._console.print()
        self._console.print(rendered(block))
        self._printed = True

    def _tail(self) -> RenderableType:
        lines = self._blocks.rest
        if len(lines) > LARGE_BLOCK:
            return Tail(Text("\n".join(lines[-self._console.height :])))
        gap = "\n" if self._printed else ""
        return Tail(Text(gap, end="")) if lines == [""] else Tail(_Below(gap, rendered("\n".join(lines))))


class _Below:
    """`content` after the lines of `gap`."""

    def __init__(self, gap: str, content: RenderableType) -> None:
        self._gap = gap
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for _ in self._gap:
            yield Segment.line()
        yield self._content

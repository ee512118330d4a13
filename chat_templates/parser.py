r"""Generated token ids, as they come, to reasoning, answer and tool calls; counts nothing and knows nothing of HTTP.

Only control tokens are tags: text that spells one is text, and no control token is ever shown. Where a checkpoint has
a tag of the format as ordinary text, that text is the tag. The rules:

- `<think>` opens reasoning, `</think>` ends it; a second `<think>` within it is ignored. In the answer `<think>` opens
  reasoning again where the parser is told so (`reopens`). Else both tags are ignored before the answer's first word, so
  is the first `</think>` after a thinking that was closed for the model, and later they are text. The newline after
  `<think>`, the one before `</think>` and up to two after it belong to the tags.
- A section of calls, in the form that `ChatFormat.calls` says, is read in the answer as well as within the thinking,
  which then goes on. Its opening tag begins it; its closing tag, what is no call, the tags above or the end of the turn
  end it. One newline before it belongs to it. Within a string of a call's arguments all tags are text, but for the
  `</think>` that ends a thinking and the end of the turn.
- What stands in a section and is no call comes back as text (of the reasoning, if within it), as does what follows
  a call there. Of a call that was cut off before its arguments nothing is shown.
- Any other control token, the end of the turn among them, is left out.
- Nothing that is text is lost: without `</think>` all is reasoning, and characters that the generation left
  unfinished end as U+FFFD.
"""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, Protocol

from chat_templates.events import AnswerText, Event, ReasoningText, joined
from chat_templates.format import ChatFormat
from chat_templates.harmony import HarmonyParser
from chat_templates.tag_scanner import TagScanner
from chat_templates.tool_forms.cursor import MARKS, is_mark
from chat_templates.tool_forms.reader import SectionReader

_MARK = re.compile(f"[{MARKS}]")


def new_call_id() -> str:
    """An id for a tool call, spelled as OpenAI's are."""
    return f"call_{secrets.token_hex(12)}"


class Parser(Protocol):
    """Reads one generation: `OutputParser`, or for harmony `HarmonyParser`."""

    is_thinking: bool
    reopens: bool

    @property
    def held(self) -> str: ...  # noqa: D102 - as in OutputParser, like all that follow
    def feed(self, token_ids: Sequence[int]) -> list[Event]: ...  # noqa: D102
    def show(self, token_id: int) -> list[Event]: ...  # noqa: D102
    def release(self) -> list[Event]: ...  # noqa: D102
    def finish(self, *, is_cut: bool = False) -> list[Event]: ...  # noqa: D102
    def end_thinking(self) -> list[Event]: ...  # noqa: D102


def make_parser(
    fmt: ChatFormat,
    *,
    thinking_open: bool,
    calls: bool,
    calls_in_thinking: bool,
    tools: Mapping[str, Any],
    call_id: Callable[[], str] | None = None,
) -> Parser:
    """The parser for a format, for a thinking that opens again only where it is told so (`Parser.reopens`)."""
    call_id = call_id or new_call_id
    if fmt.has_channels:
        return HarmonyParser(fmt, thinking_open=thinking_open, call_id=call_id, calls=calls, tools=tools)
    return OutputParser(
        fmt,
        thinking_open=thinking_open,
        call_id=call_id,
        calls=calls,
        calls_in_thinking=calls_in_thinking,
        reopens=False,
        tools=tools,
    )


class OutputParser:
    """Reads one generation.

        parser = OutputParser(fmt, thinking_open=True)
        for ids in deltas:
            events += parser.feed(ids)
        events += parser.finish()

    How the ids are cut into deltas does not change the events but for how much text each carries. `thinking_open` says
    whether the prompt left a think block open. Ids that were put into
    the generation to close its thinking (`ChatFormat.close_thinking`) are fed like generated ones.

    `reopens`: whether `<think>` in the answer opens reasoning again; else it is taken like a `</think>` there. It may
    be set between feeds. `is_thinking` tells whether a block is open now. `calls` and `calls_in_thinking`: whether tool
    calls are read as such, or their text as text. `tools`: the schemas of their arguments by name, which say what is
    text where the form has no quotes.
    """

    def __init__(
        self,
        fmt: ChatFormat,
        *,
        thinking_open: bool,
        call_id: Callable[[], str] = new_call_id,
        calls: bool = True,
        calls_in_thinking: bool = True,
        reopens: bool = True,
        tools: Mapping[str, Any] | None = None,
    ) -> None:
        self.is_thinking = thinking_open
        self._fmt = fmt
        self._call_id = call_id
        self._detokenizer = fmt.detokenizer()
        self._tag_ids = {fmt.think_id, fmt.think_end_id, *fmt.hidden_ids}
        self._may_call = {False: calls, True: calls_in_thinking}
        self._form = fmt.calls.marked
        self._open_text = fmt.calls.open_text if calls or calls_in_thinking else ""
        self._tools = tools or {}
        self._think, self._think_end = map(fmt.calls.in_marks, (fmt.settings.think, fmt.settings.think_end))
        self._hidden = frozenset(map(fmt.calls.in_marks, fmt.settings.hidden))
        text_tags = [*map(fmt.calls.in_marks, fmt.text_tags), *([self._open_text] if self._open_text else [])]
        self._scanner = TagScanner(text_tags) if text_tags else None
        self._may_begin = not self._form.open  # a section without a tag begins the answer
        self.reopens = reopens
        self._has_answered = False
        self._owes_end = False  # the model did not end its thinking itself, and may do so late
        self._events: list[Event] = []
        self._section: SectionReader | None = None
        self._calls = 0
        self._skip = 0  # newlines still to be left out, as part of the tag before them
        self._newline = ""  # held back: the next tag may own it
        self._opening = ""  # what was left out before the open section, should it hold no call

    def feed(self, token_ids: Sequence[int]) -> list[Event]:
        """What these ids add. Ids that the tokenizer does not have stand for no text."""
        if self._fmt.control_ids.isdisjoint(token_ids):  # nearly always
            self._read(self._detokenizer.feed(token_ids))
            return self._take()
        for is_control, run in groupby(token_ids, self._fmt.control_ids.__contains__):
            if is_control:
                for token_id in run:
                    self._control(token_id)
            else:
                self._read(self._detokenizer.feed(list(run)))
        return self._take()

    def show(self, token_id: int) -> list[Event]:
        """What a control token adds that is to be shown as text."""
        self._flush()
        self._read(self._fmt.vocabulary.token_text(token_id), is_text=True)
        return self._take()

    @property
    def held(self) -> str:
        """The newline at the end of the answer so far that is not told yet, since a tag may own it."""
        return "" if self.is_thinking or self._section is not None else self._newline

    def release(self) -> list[Event]:
        """Tells what is `held`: no tag owns it."""
        self._emit(self._newline)
        self._newline = ""
        return self._take()

    def finish(self, *, is_cut: bool = False) -> list[Event]:
        """The rest, once the generation has ended; `is_cut`: by a limit."""
        self._flush()
        self._end_section(is_cut=is_cut)
        self._emit(self._newline)
        self._newline = ""
        return self._take()

    def end_thinking(self) -> list[Event]:
        """The rest of a thinking that was closed for the model without ids that say so; the answer follows."""
        events = self.finish()
        self.is_thinking = False
        self._may_begin = not self._form.open
        self._skip = 0
        self._owes_end = True
        return events

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return joined(events) if len(events) > 1 else events

    def _control(self, token_id: int) -> None:
        fmt = self._fmt
        mark = fmt.calls.marks.get(token_id)
        if mark is not None:
            self._read(self._detokenizer.flush())
            self._read(mark)
            return
        self._flush()
        if self._is_quoted(token_id):
            self._read(fmt.vocabulary.token_text(token_id), is_text=True)
        elif token_id == fmt.think_id:
            self._open_thinking()
        elif token_id == fmt.think_end_id:
            self._close_thinking()
        elif token_id == fmt.end_of_turn_id:
            self._end_section()
        elif token_id in fmt.hidden_ids:
            self._hide()

    def _is_quoted(self, token_id: int) -> bool:
        """Whether a tag stands within a string of a call's arguments, where it is text."""
        section = self._section
        if section is None or not (section.is_quoted or section.in_value):
            return False
        ends_thinking = self.is_thinking and token_id == self._fmt.think_end_id
        return token_id in self._tag_ids and not ends_thinking

    def _flush(self) -> None:
        self._read(self._detokenizer.flush())
        if self._scanner is not None:
            self._text(self._unmarked(self._scanner.flush()))

    def _read(self, text: str, *, is_text: bool = False) -> None:
        """What was generated, characters that stand for tokens of calls in it; `is_text`: without any tag."""
        if self._section is None and (is_text or (self._scanner is None and not self._may_begin and text.isascii())):
            self._text(text)
            return
        while text:
            text = self._outside(text) if self._section is None else self._inside(text)

    def _inside(self, text: str) -> str:
        """Reads text in a section; returns what comes after it."""
        section = self._section
        assert section is not None
        if section.is_quoted and len(text) == 1 and is_mark(text):
            text = self._fmt.calls.spellings[ord(text)]
        self._events += section.feed(text)
        if not section.is_closed:
            return ""
        return self._closed(section)

    def _closed(self, section: SectionReader) -> str:
        """Leaves a section; returns what was read with it and is no part of it."""
        self._section, self._calls = None, section.calls
        if section.has_started:
            self._has_answered = self._has_answered or not self.is_thinking
        else:
            self._text(self._opening)
        return section.rest

    def _outside(self, text: str) -> str:
        """Reads text up to the next tag, and that; returns the rest."""
        if self._may_begin and not self.is_thinking and (begun := text.lstrip()):
            self._may_begin = False
            if begun[0] in "[{" and self._may_call[False]:
                self._text(text[: -len(begun)])
                self._open_section()
                return begun
        if self._scanner is None or not self._fmt.calls.holds_marks:
            mark = _MARK.search(text)
            if mark is not None and mark.start() == 0:
                self._mark(text[0])
                return text[1:]
            text, rest = (text, "") if mark is None else (text[: mark.start()], text[mark.start() :])
        else:
            rest = ""
        if self._scanner is None:
            self._text(text)
            return rest
        before, tag, after = self._scanner.take(text)
        self._text(self._unmarked(before))
        if tag and not self._is_tag(tag):
            self._text(self._unmarked(tag))
        return after + rest

    def _mark(self, mark: str) -> None:
        """A token of calls outside a section: it opens one, or is left out."""
        if not self._may_call[self.is_thinking]:
            return
        if self._scanner is not None:
            self._text(self._scanner.flush())
        if mark == self._form.open:
            self._open_section()

    def _unmarked(self, text: str) -> str:
        return self._fmt.calls.unmarked(text)

    def _is_tag(self, spelling: str) -> bool:
        """Does what the tag says, if it says anything here; else it is text."""
        if spelling == self._open_text:
            if not self._may_call[self.is_thinking]:
                return False
            self._open_section(self._unmarked(spelling))
        elif spelling == self._think_end and self.is_thinking:
            self._close_thinking()
        elif spelling == self._think and (self.is_thinking or self.reopens):
            self._open_thinking()
        elif spelling in self._hidden:
            self._hide()
        else:
            return False
        return True

    def _open_section(self, spelling: str = "") -> None:
        self._section = SectionReader(self._form, self._tools, self._calls, self._call_id, self._fmt.calls.spellings)
        self._opening, self._newline = self._newline + spelling, ""
        self._skip = 0

    def _hide(self) -> None:
        """A newline before the tag and one after it belong to it."""
        self._end_section()
        self._newline = ""
        self._skip = 1

    def _open_thinking(self) -> None:
        if not self.reopens:
            if not self.is_thinking:
                self._text_in_answer(self._fmt.settings.think)
            return
        self._end_section()
        if not self.is_thinking:
            if self._has_answered:
                self._emit(self._newline)
            self._newline = ""
        self.is_thinking = True
        self._skip = 1

    def _close_thinking(self) -> None:
        if not self.is_thinking:
            if not self._owes_end:
                self._text_in_answer(self._fmt.settings.think_end)
            self._owes_end = False
            return
        self._end_section()
        self._newline = ""
        self.is_thinking = False
        self._may_begin = not self._form.open
        self._skip = 2

    def _text_in_answer(self, spelling: str) -> None:
        """A tag of thinking where there is none: models repeat one before they answer, after that it is text."""
        if self._has_answered and self._section is None:
            self._text(spelling)

    def _end_section(self, *, is_cut: bool = False) -> None:
        """What was begun and is no call is text, unless a limit cut it off."""
        section = self._section
        if section is None:
            return
        self._events += section.finish()
        if is_cut and not section.has_started:
            self._section = None
            return
        rest = self._closed(section)
        self._text("" if is_cut else self._unmarked(rest))

    def _text(self, text: str) -> None:
        """Text of the answer or the reasoning."""
        while self._skip and text.startswith("\n"):
            text = text[1:]
            self._skip -= 1
        if not text:
            return
        self._skip = 0
        text = self._newline + text
        shown = text.removesuffix("\n")
        self._newline = text[len(shown) :]
        self._emit(shown)

    def _emit(self, text: str) -> None:
        if text:
            self._has_answered = self._has_answered or not (self.is_thinking or text.isspace())
            self._events.append(ReasoningText(text) if self.is_thinking else AnswerText(text))

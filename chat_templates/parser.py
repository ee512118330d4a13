r"""Generated token ids, as they come, to reasoning, answer and tool calls; counts nothing and knows nothing of HTTP.

Only control tokens are tags: text that spells one is text, and no control token is ever shown. Where a checkpoint has
a tag of the format as ordinary text, that text is the tag. The rules:

- `<think>` opens reasoning, `</think>` ends it; a second `<think>` is ignored. So is a `</think>` with nothing open
  before the answer's first word, and the first after a thinking that was closed for the model; else it is text. The
  newline after `<think>`, the one before `</think>` and up to two after it belong to the tags.
- `<tool_call>` opens a call, in the answer as well as within the thinking, which then goes on; `</tool_call>`, the
  tags above, another call or the end of the turn end it. One newline before a call belongs to the call. Within a string
  of a call's arguments all tags are text, but for the `</think>` that ends a thinking and the end of the turn.
- What stands in a call's tags but is none comes back as text (of the reasoning, if within it), as does what follows
  the call's JSON. Of a call that was cut off before its arguments nothing is shown.
- Any other control token, the end of the turn among them, is left out.
- Nothing that is text is lost: without `</think>` all is reasoning, and characters that the generation left
  unfinished end as U+FFFD.
"""

import secrets
from collections.abc import Callable, Sequence
from itertools import groupby

from chat_templates.events import AnswerText, Event, ReasoningText, joined
from chat_templates.format import ChatFormat
from chat_templates.tag_scanner import TagScanner
from chat_templates.tool_call import ToolCallReader


def new_call_id() -> str:
    """An id for a tool call, spelled as OpenAI's are."""
    return f"call_{secrets.token_hex(12)}"


class OutputParser:
    """Reads one generation.

        parser = OutputParser(fmt, thinking_open=True)
        for ids in deltas:
            events += parser.feed(ids)
        events += parser.finish()

    How the ids are cut into deltas does not change the events but for how much text each carries. `thinking_open` says
    whether the prompt left a think block open. Ids that were put into
    the generation to close its thinking (`ChatFormat.close_thinking`) are fed like generated ones.

    `reopens`: whether `<think>` in the answer opens reasoning again; else it is taken like a `</think>` there.
    `is_thinking` tells whether a block is open now. `calls` and `calls_in_thinking`: whether tool calls whose tags are
    ordinary text are read as such, or as text.
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
    ) -> None:
        self.is_thinking = thinking_open
        self._fmt = fmt
        self._call_id = call_id
        self._detokenizer = fmt.detokenizer()
        self._tag_ids = {fmt.think_id, fmt.think_end_id, fmt.tool_call_id, fmt.tool_call_end_id, *fmt.hidden_ids}
        self._scanner = TagScanner(fmt.text_tags) if fmt.text_tags else None
        self._may_call = {False: calls, True: calls_in_thinking}
        self._reopens = reopens
        self._has_answered = False
        self._owes_end = False  # the model did not end its thinking itself, and may do so late
        self._events: list[Event] = []
        self._call: ToolCallReader | None = None
        self._calls = 0
        self._skip = 0  # newlines still to be left out, as part of the tag before them
        self._newline = ""  # held back: the next tag may own it
        self._call_opening = ""  # what was left out before the open call, should it be none

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
        self._text(self._fmt.vocabulary.token_text(token_id))
        return self._take()

    @property
    def held(self) -> str:
        """The newline at the end of the answer so far that is not told yet, since a tag may own it."""
        return "" if self.is_thinking or self._call is not None else self._newline

    def release(self) -> list[Event]:
        """Tells what is `held`: no tag owns it."""
        self._emit(self._newline)
        self._newline = ""
        return self._take()

    def finish(self, *, is_cut: bool = False) -> list[Event]:
        """The rest, once the generation has ended; `is_cut`: by a limit."""
        self._flush()
        if is_cut and self._call is not None and self._call.is_head:
            self._call = None
        self._end_call()
        self._emit(self._newline)
        self._newline = ""
        return self._take()

    def end_thinking(self) -> list[Event]:
        """The rest of a thinking that was closed for the model without ids that say so; the answer follows."""
        events = self.finish()
        self.is_thinking = False
        self._skip = 0
        self._owes_end = True
        return events

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return joined(events) if len(events) > 1 else events

    def _control(self, token_id: int) -> None:
        fmt = self._fmt
        self._flush()
        if self._is_quoted(token_id):
            self._text(fmt.vocabulary.token_text(token_id))
        elif token_id == fmt.think_id:
            self._open_thinking()
        elif token_id == fmt.think_end_id:
            self._close_thinking()
        elif token_id == fmt.tool_call_id:
            self._open_call()
        elif token_id in (fmt.tool_call_end_id, fmt.end_of_turn_id):
            self._end_call()
        elif token_id in fmt.hidden_ids:
            self._hide()

    def _is_quoted(self, token_id: int) -> bool:
        """Whether a tag stands within a string of a call's arguments, where it is text."""
        fmt = self._fmt
        if self._call is None or not self._call.is_in_string:
            return False
        ends_thinking = self.is_thinking and token_id == fmt.think_end_id
        return token_id in self._tag_ids and not ends_thinking

    def _flush(self) -> None:
        self._read(self._detokenizer.flush())
        if self._scanner is not None:
            self._text(self._scanner.flush())

    def _read(self, text: str) -> None:
        """Text with tags in it, where the format has any as text."""
        if self._scanner is None:
            self._text(text)
            return
        for found in self._scanner.feed(text):
            if not (found.is_tag and self._is_tag(found.text)):
                self._text(found.text)

    def _is_tag(self, spelling: str) -> bool:
        """Does what the tag says, if it says anything here; else it is text."""
        tags = self._fmt.settings
        if self._call is not None and self._call.is_in_string:
            return False
        if spelling == tags.tool_call_end and self._call is not None:
            self._end_call(spelling)
        elif self._call is not None or (spelling == tags.tool_call and not self._may_call[self.is_thinking]):
            return False
        elif spelling == tags.tool_call:
            self._open_call(spelling)
        elif spelling == tags.think_end and self.is_thinking:
            self._close_thinking()
        elif spelling == tags.think and self.is_thinking:
            self._open_thinking()
        elif spelling in tags.hidden:
            self._hide()
        else:
            return False
        return True

    def _open_call(self, spelling: str = "") -> None:
        self._end_call()
        self._call = ToolCallReader(self._calls, self._call_id())
        self._call_opening, self._newline = self._newline + spelling, ""
        self._skip = 0

    def _hide(self) -> None:
        """A newline before the tag and one after it belong to it."""
        self._end_call()
        self._newline = ""
        self._skip = 1

    def _open_thinking(self) -> None:
        if not self._reopens:
            if not self.is_thinking:
                self._text_in_answer(self._fmt.settings.think)
            return
        self._end_call()
        if not self.is_thinking:
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
        self._end_call()
        self._newline = ""
        self.is_thinking = False
        self._skip = 2

    def _text_in_answer(self, spelling: str) -> None:
        """A tag of thinking where there is none: models repeat one before they answer, after that it is text."""
        if self._has_answered and self._call is None:
            self._text(spelling)

    def _end_call(self, spelling: str = "") -> None:
        call, self._call = self._call, None
        if call is None:
            return
        events, rest = call.close()
        self._events += events
        if call.has_started:
            self._calls += 1
            self._has_answered = self._has_answered or not self.is_thinking
            self._text(rest)
        else:
            self._text(self._call_opening + rest + spelling)

    def _text(self, text: str) -> None:
        if self._call is not None:
            self._events += self._call.feed(text)
            return
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

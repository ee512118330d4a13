r"""Reads what models write in OpenAI's harmony: messages, each with a header that names its channel and who it is for.

After https://github.com/openai/harmony (docs/format.md and `StreamableParser` in src/encoding.rs), to whose package a
test holds it. A header stands between `<|start|>` and `<|message|>`, as in
`<|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>`; a body ends at `<|end|>`,
`<|call|>` or `<|return|>`. The rules:

- `analysis` is the thinking. `final` is the answer, and so is `commentary` that is for nobody. A message for a function
  is a call, in whatever channel; its body is its arguments. One for a tool that the client has not is the thinking's.
- Messages that follow each other in the answer, or in the thinking, have a line break between them.
- A body without header is of the answer, or of the thinking where the prompt has opened that.
- No control token is ever shown. Of a header that was cut off nothing is; text that never became one is the answer's.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from chat_templates.events import (
    AnswerText,
    Event,
    ReasoningText,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    joined,
)
from chat_templates.format import ChatFormat

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
FUNCTIONS = "functions."
_SPELLED = re.compile(r"<\|channel\|>\s*([^\s<]*)|to=([^\s<]+)")
_HEADED = re.compile(r"<\|channel\|>\s*([^\s<]+)\s+(?=[^\s<])(?!to=)")
_BUILT_IN = ("browser", "python", "container", "assistant")
"""Whom a message may be for that is no function of the client's; `browser` and `container` have functions of their
own, as in `browser.search`.
"""


class HarmonyParser:
    """Reads one generation, as `OutputParser` does the others; it has the same arguments and methods.

    `calls` and `calls_in_thinking` mean the same here, since a call is a message of its own. `reopens` says nothing: a
    message in the channel of thinking is thinking wherever it comes.
    """

    reopens = True

    def __init__(
        self,
        fmt: ChatFormat,
        *,
        thinking_open: bool,
        call_id: Callable[[], str],
        calls: bool = True,
        tools: Mapping[str, Any] | None = None,
    ) -> None:
        self.is_thinking = thinking_open
        self.held = ""
        self._fmt = fmt
        self._call_id = call_id
        self._may_call = calls
        self._tools = tools or {}
        self._detokenizer = fmt.detokenizer()
        self._spellings = {fmt.vocabulary.control[text]: text for text in tokens_of(fmt)}
        self._header: str | None = None  # what has been read of one; None within a body
        self._is_spelled = False  # whether a token has begun the header
        self._call: int | None = None  # the index of the call whose arguments come
        self._has_arguments = False
        self._calls = 0
        self._joint = {True: "", False: ""}  # what stands before the next text of thinking, and of the answer
        self._has_text = {True: False, False: False}
        self._events: list[Event] = []

    def feed(self, token_ids: Sequence[int]) -> list[Event]:
        """What these ids add. Ids that the tokenizer does not have stand for no text."""
        for is_control, run in groupby(token_ids, self._fmt.control_ids.__contains__):
            if is_control:
                for token_id in run:
                    self._read(self._detokenizer.flush())
                    self._control(self._spellings.get(token_id, ""))
            else:
                self._read(self._detokenizer.feed(list(run)))
        return self._take()

    def show(self, token_id: int) -> list[Event]:
        """What a control token adds that is to be shown as text."""
        self._read(self._detokenizer.flush())
        self._read(self._fmt.vocabulary.token_text(token_id))
        return self._take()

    def release(self) -> list[Event]:
        """Nothing: no text waits for what comes after it."""
        return []

    def finish(self, *, is_cut: bool = False) -> list[Event]:
        """The rest, once the generation has ended; `is_cut`: by a limit."""
        self._read(self._detokenizer.flush())
        self._end_message(is_complete=not is_cut)
        return self._take()

    def end_thinking(self) -> list[Event]:
        """The rest of a thinking that was closed for the model without ids that say so; the answer follows."""
        events = self.finish()
        self._open_body(thinking=False)
        return events

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return joined(events) if len(events) > 1 else events

    def _control(self, spelling: str) -> None:
        if spelling in ENDS:
            self._end_header()
            self._end_message(is_complete=True)
            self._header = ""
        elif spelling == MESSAGE:
            header, self._header = self._header, None
            if header is not None:
                self._begin_message(header)
        elif spelling in (START, CHANNEL, CONSTRAIN):
            if self._header is None or spelling == START:
                self._end_message(is_complete=True)
                self._header = ""
            self._header += spelling
            self._is_spelled = True

    def _begin_message(self, header: str) -> None:
        self._is_spelled = False
        channel = recipient = ""
        for found in _SPELLED.finditer(header):
            channel, recipient = found[1] or channel, found[2] or recipient
        name = recipient.removeprefix(FUNCTIONS)
        is_ours = name == recipient and name not in self._tools and name.split(".")[0] in _BUILT_IN
        if name and not is_ours and self._may_call:
            self._begin_call(name)
        else:
            self._open_body(thinking=channel == "analysis" or (is_ours and recipient != "assistant"))

    def _begin_call(self, name: str) -> None:
        self.is_thinking = False
        self._call, self._has_arguments = self._calls, False
        self._calls += 1
        self._events.append(ToolCallStart(self._call, self._call_id(), name))

    def _open_body(self, *, thinking: bool) -> None:
        self._header = None
        self.is_thinking = thinking
        self._joint[thinking] = "\n" if self._has_text[thinking] else ""

    def _end_header(self) -> None:
        """Of a message that ends before its body has begun, what follows the channel's name is the body."""
        header = self._header
        if header and self._is_spelled and (found := _HEADED.search(header)):
            self._header = None
            self._begin_message(header[: found.end(1)])
            self._read(header[found.end() :])

    def _end_message(self, *, is_complete: bool) -> None:
        header, self._header = self._header, None
        if header and not self._is_spelled:
            self._open_body(thinking=False)
            self._read(header)
        self._is_spelled = False
        if self._call is not None:
            if is_complete and not self._has_arguments:
                self._events.append(ToolCallArguments(self._call, "{}"))
            self._events.append(ToolCallEnd(self._call, is_complete))
            self._call = None

    def _read(self, text: str) -> None:
        if not text:
            return
        if self._header is not None:
            self._header += text
        elif self._call is not None:
            text = text if self._has_arguments else text.lstrip()
            if text:
                self._has_arguments = True
                self._events.append(ToolCallArguments(self._call, text))
        else:
            thinking = self.is_thinking
            text, self._joint[thinking] = self._joint[thinking] + text, ""
            self._has_text[thinking] = True
            self._events.append(ReasoningText(text) if thinking else AnswerText(text))


def tokens_of(fmt: ChatFormat) -> list[str]:
    """The spellings of harmony's tokens that the tokenizer has."""
    return [text for text in (START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS) if text in fmt.vocabulary.control]

"""The output of a response: items, put together from the core's pieces, and the events that tell of each step."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from chat_templates.events import AnswerText, Event, ReasoningText, ToolCallArguments, ToolCallEnd, ToolCallStart
from server.api.common.sealed import seal
from server.api.responses.conversation import SEALED
from server.api.responses.tools import CustomTool, InputReader, Offered
from server.core.events import LogprobEntry, Piece
from server.core.request import new_id
from server.errors import JsonObject

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class ThinkingShown(NamedTuple):
    """In which forms the response has the thinking."""

    open: bool = True
    summarized: bool = False
    sealed: bool = False


class OutputItem:
    """An item that grows with its text. Knows its own events, all but `output_item.added` and `.done`."""

    prefix: str
    status: ItemStatus = "in_progress"

    def __init__(self, index: int) -> None:
        self.index = index
        self.id = new_id(self.prefix, "_")
        self._texts: list[str] = []

    def item(self) -> JsonObject:
        """The item as it is now."""
        raise NotImplementedError

    def opening(self) -> list[JsonObject]:
        """The events before any text."""
        return []

    def more(self, text: str) -> list[JsonObject]:
        """Takes more of the text; its events."""
        self._texts.append(text)
        return self._deltas(text)

    def closing(self) -> list[JsonObject]:
        """The events after all text."""
        return []

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._texts)

    def _deltas(self, text: str) -> list[JsonObject]:
        raise NotImplementedError

    def _event(self, kind: str, **fields: object) -> JsonObject:
        return {"type": f"response.{kind}", "item_id": self.id, "output_index": self.index, **fields}


class ReasoningItem(OutputItem):
    """Thinking."""

    prefix = "rs"

    def __init__(self, index: int, shown: ThinkingShown) -> None:
        super().__init__(index)
        self._shown = shown
        self._sealed: str | None = None

    def item(self) -> JsonObject:
        """`content` has the thinking, `summary` the same where it is asked for; sealed only when it is whole."""
        text, shown = self.text, self._shown
        made: JsonObject = {
            "id": self.id,
            "type": "reasoning",
            "summary": [_summary(text)] if shown.summarized and text else [],
            "status": self.status,
        }
        if shown.open:
            made["content"] = [_thinking(text)] if text else []
        if shown.sealed and self.status != "in_progress":
            self._sealed = self._sealed or seal(SEALED, text)
            made["encrypted_content"] = self._sealed
        return made

    def opening(self) -> list[JsonObject]:
        """Of the content, then of the summary."""
        events = []
        if self._shown.open:
            events.append(self._event("content_part.added", content_index=0, part=_thinking("")))
        if self._shown.summarized:
            events.append(self._event("reasoning_summary_part.added", summary_index=0, part=_summary("")))
        return events

    def closing(self) -> list[JsonObject]:
        """Of the content, then of the summary."""
        text, events = self.text, []
        if self._shown.open:
            events += [
                self._event("reasoning_text.done", content_index=0, text=text),
                self._event("content_part.done", content_index=0, part=_thinking(text)),
            ]
        if self._shown.summarized:
            events += [
                self._event("reasoning_summary_text.done", summary_index=0, text=text),
                self._event("reasoning_summary_part.done", summary_index=0, part=_summary(text)),
            ]
        return events

    def _deltas(self, text: str) -> list[JsonObject]:
        events = []
        if self._shown.open:
            events.append(self._event("reasoning_text.delta", content_index=0, delta=text))
        if self._shown.summarized:
            events.append(self._event("reasoning_summary_text.delta", summary_index=0, delta=text))
        return events


class MessageItem(OutputItem):
    """The answer."""

    prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[LogprobEntry] = []
        self._told = 0

    def item(self) -> JsonObject:
        """Its content is one text, none before it began."""
        content = [self._part()] if self._texts or self.status != "in_progress" else []
        return {"id": self.id, "type": "message", "status": self.status, "role": "assistant", "content": content}

    def opening(self) -> list[JsonObject]:
        """Of its one part."""
        return [self._event("content_part.added", content_index=0, part=_answer("", []))]

    def closing(self) -> list[JsonObject]:
        """Of its one part."""
        text = self.text
        return [
            self._event("output_text.done", content_index=0, text=text, logprobs=self._logprobs),
            self._event("content_part.done", content_index=0, part=self._part()),
        ]

    def take_logprobs(self, entries: list[LogprobEntry]) -> None:
        """The next text's, and that of tokens without a text of their own."""
        self._logprobs += entries

    def rest(self) -> list[JsonObject]:
        """The event of log-probabilities that came without text."""
        return self._deltas("") if self._told < len(self._logprobs) else []

    def _part(self) -> JsonObject:
        return _answer(self.text, self._logprobs)

    def _deltas(self, text: str) -> list[JsonObject]:
        entries, self._told = self._logprobs[self._told :], len(self._logprobs)
        return [self._event("output_text.delta", content_index=0, delta=text, logprobs=entries)]


class CallItem(OutputItem):
    """A call of a tool. `kind`: the item's type; its text is its `field`."""

    kind: str
    field: str

    def __init__(self, index: int, call: ToolCallStart, tool: Offered | None) -> None:
        super().__init__(index)
        self._call_id = call.id
        self._named = _named(call, tool)

    def item(self) -> JsonObject:
        """With all of its text so far."""
        head = {"id": self.id, "type": self.kind, "status": self.status, "call_id": self._call_id}
        return {**head, **self._named, self.field: self.text}


class FunctionCallItem(CallItem):
    """A call of a function; its text is the arguments."""

    prefix, kind, field = "fc", "function_call", "arguments"

    def closing(self) -> list[JsonObject]:
        """The arguments, whole."""
        return [self._event("function_call_arguments.done", name=self._named["name"], arguments=self.text)]

    def _deltas(self, text: str) -> list[JsonObject]:
        return [self._event("function_call_arguments.delta", delta=text)]


class CustomCallItem(CallItem):
    """A call of a custom tool; its text is the input, read out of the arguments that the model writes."""

    prefix, kind, field = "ctc", "custom_tool_call", "input"

    def __init__(self, index: int, call: ToolCallStart, tool: Offered | None) -> None:
        super().__init__(index, call, tool)
        self._reader = InputReader()

    def more(self, text: str) -> list[JsonObject]:
        """Of the arguments."""
        found = self._reader.feed(text)
        return super().more(found) if found else []

    def closing(self) -> list[JsonObject]:
        """The input, whole."""
        rest = self._reader.finish()
        events = super().more(rest) if rest else []
        return [*events, self._event("custom_tool_call_input.done", input=self.text)]

    def _deltas(self, text: str) -> list[JsonObject]:
        return [self._event("custom_tool_call_input.delta", delta=text)]


class Output:
    """The items of one response, in the order in which the model wrote them; at most the last is open.

    `offered`: the tools, by the names that the model has for them.
    """

    def __init__(self, thinking: ThinkingShown, offered: Mapping[str, Offered]) -> None:
        self._thinking = thinking
        self._offered = offered
        self._items: list[OutputItem] = []
        self._open: OutputItem | None = None
        self._logprobs: list[LogprobEntry] = []

    def items(self) -> list[JsonObject]:
        """All items as they are now."""
        return [item.item() for item in self._items]

    def read(self, piece: Piece) -> list[JsonObject]:
        """Takes the next piece; its events."""
        if piece.logprobs is not None:
            self._logprobs += piece.logprobs["content"]
        events = [made for event in piece.events for made in self._read(event)]
        if self._logprobs and isinstance(self._open, MessageItem):
            events += self._with_logprobs(self._open).rest()
        return events

    def finish(self, status: ItemStatus) -> list[JsonObject]:
        """Ends the output; its last events. `status`: of what is open. One that ends well has a message or a call."""
        is_lacking = all(isinstance(item, ReasoningItem) for item in self._items)
        is_cut = status == "incomplete" and self._items
        return [*(self._message() if is_lacking and not is_cut else []), *self._close(status)]

    def _read(self, event: Event) -> list[JsonObject]:
        match event:
            case ReasoningText(text):
                return self._think(text)
            case AnswerText(text):
                events = self._message()
                assert isinstance(self._open, MessageItem)
                return events + self._with_logprobs(self._open).more(text)
            case ToolCallStart():
                tool = self._offered.get(event.name)
                kind = CustomCallItem if tool and isinstance(tool.tool, CustomTool) else FunctionCallItem
                self._logprobs.clear()
                return self._start(kind(len(self._items), event, tool))
            case ToolCallArguments(_, text):
                assert self._open is not None
                return self._open.more(text)
            case ToolCallEnd(_, complete):
                return self._close("completed" if complete else "incomplete")

    def _think(self, text: str) -> list[JsonObject]:
        if not any(self._thinking):
            return []
        events = []
        if not isinstance(self._open, ReasoningItem):
            events = self._start(ReasoningItem(len(self._items), self._thinking))
        assert self._open is not None
        return events + self._open.more(text)

    def _message(self) -> list[JsonObject]:
        """Opens a message, if none is open."""
        return [] if isinstance(self._open, MessageItem) else self._start(MessageItem(len(self._items)))

    def _with_logprobs(self, message: MessageItem) -> MessageItem:
        message.take_logprobs(self._logprobs)
        self._logprobs = []
        return message

    def _start(self, item: OutputItem) -> list[JsonObject]:
        events = self._close("completed")
        self._items.append(item)
        self._open = item
        return [*events, _item_event("added", item), *item.opening()]

    def _close(self, status: ItemStatus) -> list[JsonObject]:
        item = self._open
        if item is None:
            return []
        self._open = None
        events = item.closing()
        item.status = status
        return [*events, _item_event("done", item)]


def _named(call: ToolCallStart, tool: Offered | None) -> JsonObject:
    """The name that the client has for the tool, and its namespace."""
    if tool is None or tool.namespace is None:
        return {"name": call.name}
    return {"name": tool.tool.name, "namespace": tool.namespace}


def _item_event(what: Literal["added", "done"], item: OutputItem) -> JsonObject:
    return {"type": f"response.output_item.{what}", "output_index": item.index, "item": item.item()}


def _answer(text: str, logprobs: list[LogprobEntry]) -> JsonObject:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _thinking(text: str) -> JsonObject:
    return {"type": "reasoning_text", "text": text}


def _summary(text: str) -> JsonObject:
    return {"type": "summary_text", "text": text}

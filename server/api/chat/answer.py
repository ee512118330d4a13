"""From the core's pieces to OpenAI's objects of a chat completion, whole and in chunks, as plain dicts."""

from collections import defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import orjson

from chat_templates.events import AnswerText, Event, ReasoningText, ToolCallArguments, ToolCallEnd, ToolCallStart
from server.api.common.custom_tools import InputReader
from server.api.common.usage import mode_told, usage
from server.core.choice import Choice
from server.core.events import Piece
from server.core.logprobs import prompt_places
from server.core.plan import Plan
from server.core.serving import Serving
from server.errors import ApiError, JsonObject
from server.http.sse import DONE, encode_event, encode_json

HOLE = "\0"  # where text goes in an encoded event; nothing else there is this string


class Gathered:
    """The pieces of one choice, put together; `custom`: the tools that take text."""

    def __init__(self, custom: AbstractSet[str]) -> None:
        self._custom = custom
        self._reasoning: list[str] = []
        self._answer: list[str] = []
        self._calls: list[ToolCallStart] = []
        self._arguments: list[list[str]] = []
        self._logprobs = defaultdict[str, bytearray](bytearray)  # as JSON, which is smallest

    def add(self, piece: Piece) -> None:
        """Takes the next piece."""
        for event in piece.events:
            match event:
                case ReasoningText(text):
                    self._reasoning.append(text)
                case AnswerText(text):
                    self._answer.append(text)
                case ToolCallStart():
                    self._calls.append(event)
                    self._arguments.append([])
                case ToolCallArguments(_, text):
                    self._arguments[-1].append(text)
        for name, entries in (piece.logprobs or {}).items():
            self._logprobs[name] += b"".join(orjson.dumps(entry) + b"," for entry in entries)

    def message(self, reasoning_fields: Sequence[str]) -> JsonObject:
        """The choice's message; the thinking stands in each of these fields."""
        answer = "".join(self._answer)
        message: JsonObject = {"role": "assistant", "content": answer, "refusal": None}
        if self._calls:
            message["content"] = answer or None
            message["tool_calls"] = [
                _custom_call(call, "".join(texts)) if call.name in self._custom else _call(call, "".join(texts))
                for call, texts in zip(self._calls, self._arguments, strict=True)
            ]
        return message | dict.fromkeys(reasoning_fields, "".join(self._reasoning))

    @property
    def has_calls(self) -> bool:
        """Whether the model called a tool."""
        return bool(self._calls)

    def logprobs(self) -> JsonObject | None:
        """The choice's log-probabilities, if they were asked for."""
        if not self._logprobs:
            return None
        lists = {
            name: orjson.Fragment(b"".join((b"[", memoryview(entries)[:-1], b"]")))
            for name, entries in self._logprobs.items()
        }
        return {"refusal": None, **lists}


class ChatResponse:
    """The response to a request that was not streamed; `custom`: the tools that take text."""

    def __init__(self, plan: Plan, choices: Sequence[Choice], serving: Serving, custom: AbstractSet[str]) -> None:
        self._plan = plan
        self._choices = choices
        self._model = plan.model
        self._fingerprint = serving.settings.system_fingerprint
        self._fmt = serving.fmt
        self._reasoning_fields = serving.settings.reasoning_fields
        self._gathered = [Gathered(custom) for _ in choices]

    def add(self, piece: Piece) -> None:
        """Takes the next piece."""
        self._gathered[piece.choice].add(piece)

    def response(self) -> JsonObject:
        """The whole response, after the last piece."""
        plan = self._plan
        choices = [
            {
                "index": index,
                "message": gathered.message(self._reasoning_fields if _shows_thinking(choice, plan) else ()),
                "logprobs": gathered.logprobs(),
                **mode_told(choice, plan),
                **_how_it_ended(choice, plan, has_calls=gathered.has_calls),
                **({"token_ids": choice.token_ids} if plan.shows_token_ids else {}),
            }
            for index, (choice, gathered) in enumerate(zip(self._choices, self._gathered, strict=True))
        ]
        return {
            "id": plan.id,
            "object": "chat.completion",
            "created": plan.created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
            "usage": usage(plan, self._choices),
            **_prompt_ids(plan, self._choices[0]),
            **self._prompt_logprobs(),
        }

    def _prompt_logprobs(self) -> JsonObject:
        choice, top = self._choices[0], self._plan.choices[0].sampling.prompt_logprobs
        if top is None or choice.prompt_logprobs is None:
            return {}
        return {"prompt_logprobs": prompt_places(self._fmt, top, choice.prompt_ids, choice.prompt_logprobs)}


def _prompt_ids(plan: Plan, choice: Choice) -> JsonObject:
    return {"prompt_token_ids": choice.prompt_ids} if plan.shows_token_ids else {}


def _shows_thinking(choice: Choice, plan: Plan) -> bool:
    return plan.shows_thinking and not (plan.tells_mode and choice.is_direct)


def _call(call: ToolCallStart, arguments: str) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _custom_call(call: ToolCallStart, arguments: str) -> JsonObject:
    reader = InputReader()
    text = reader.feed(arguments) + reader.finish()
    return {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": text}}


def _how_it_ended(choice: Choice, plan: Plan, *, has_calls: bool) -> JsonObject:
    """A tool that the client named is no decision of the model's: as OpenAI, that is no `tool_calls`."""
    calls = has_calls and choice.finish == "stop" and not plan.answer_format.is_named
    ended: JsonObject = {
        "finish_reason": "tool_calls" if calls else choice.finish,
        "stop_reason": choice.stop_reason,
    }
    if choice.thinking_finish is not None:
        ended["reasoning_finish_reason"] = choice.thinking_finish
    return ended


class ChunkWriter:
    """The events of one streamed response, encoded. With `include_usage` each has the field, null but in the last;
    with `continuous_usage` it has the counts so far. `custom`: the tools that take text.
    """

    def __init__(
        self,
        plan: Plan,
        choices: Sequence[Choice],
        serving: Serving,
        custom: AbstractSet[str],
        *,
        include_usage: bool,
        continuous_usage: bool = False,
    ) -> None:
        self._reasoning_fields = serving.settings.reasoning_fields if plan.shows_thinking else ()
        self._continuous_usage = continuous_usage
        self._plan = plan
        self._choices = choices
        self._head: JsonObject = {
            "id": plan.id,
            "object": "chat.completion.chunk",
            "created": plan.created,
            "model": plan.model,
            "system_fingerprint": serving.settings.system_fingerprint,
        }
        self._tail: JsonObject = {"usage": None} if include_usage else {}
        self._has_begun: set[int] = set()
        self._with_calls: set[int] = set()
        self._custom = custom
        self._inputs: dict[tuple[int, int], InputReader] = {}
        self._around: dict[tuple[int, type[Event]], list[bytes]] = {}

    def begin(self) -> bytes:
        """The first event of each choice, where its mode is known."""
        return b"".join([self._begun(index) for index in range(len(self._choices)) if not self._plan.tells_mode])

    def _begun(self, index: int) -> bytes:
        choice = self._choices[index]
        self._has_begun.add(index)
        chunk = self._chunk(index, {"role": "assistant", "content": ""}, mode_told(choice, self._plan))
        return encode_event(chunk | (_prompt_ids(self._plan, choice) if index == 0 else {}))

    def piece(self, piece: Piece) -> bytes:
        """The events of a piece; what is told of its tokens comes with the first, which may have no text for them."""
        if piece.choice in self._has_begun:
            return self._more(piece)
        return self._begun(piece.choice) + self._more(piece)

    def _more(self, piece: Piece) -> bytes:
        index = piece.choice
        if piece.logprobs is None and piece.token_ids is None:  # nearly always
            return b"".join([self._event(index, event) for event in piece.events])
        told: JsonObject = {}
        if piece.logprobs is not None and any(piece.logprobs.values()):
            told["logprobs"] = {"refusal": None, **piece.logprobs}
        if piece.token_ids:
            told["token_ids"] = piece.token_ids
        first, *rest = [delta for event in piece.events if (delta := self._delta(index, event)) is not None] or [{}]
        chunks = [self._chunk(index, first, told)] if first or told else []
        return b"".join(map(encode_event, [*chunks, *(self._chunk(index, delta) for delta in rest)]))

    def finish(self) -> bytes:
        """How each choice ended and, if asked for, the token counts in an event without choices."""
        ends = [
            self._chunk(index, {}, _how_it_ended(choice, self._plan, has_calls=index in self._with_calls))
            for index, choice in enumerate(self._choices)
        ]
        if self._tail:
            ends.append({**self._head, "choices": [], "usage": usage(self._plan, self._choices)})
        return b"".join(map(encode_event, ends)) + DONE

    def error(self, error: ApiError) -> bytes:
        """OpenAI's error as the last event."""
        return encode_event(error.body())

    def _event(self, index: int, event: Event) -> bytes:
        """One event; text, which most of them are, is put between what stood around the first such text."""
        if self._continuous_usage or not isinstance(event, (AnswerText, ReasoningText)):
            delta = self._delta(index, event)
            return b"" if delta is None else encode_event(self._chunk(index, delta))
        around = self._around.get((index, type(event)))
        if around is None:
            delta = self._delta(index, type(event)(HOLE))
            around = [] if delta is None else encode_event(self._chunk(index, delta)).split(orjson.dumps(HOLE))
            self._around[index, type(event)] = around
        return encode_json(event.text).join(around)

    def _delta(self, choice: int, event: Event) -> JsonObject | None:
        match event:
            case ReasoningText(text) if self._reasoning_fields:
                return dict.fromkeys(self._reasoning_fields, text)
            case AnswerText(text):
                return {"content": text}
            case ToolCallStart() | ToolCallArguments() | ToolCallEnd():
                more = self._call_delta(choice, event)
                return None if more is None else {"tool_calls": [{"index": event.index, **more}]}
        return None

    def _call_delta(self, choice: int, event: ToolCallStart | ToolCallArguments | ToolCallEnd) -> JsonObject | None:
        """More of a call; that of a custom tool has what stands in the one argument."""
        if isinstance(event, ToolCallStart):
            self._with_calls.add(choice)
            if event.name not in self._custom:
                return _call(event, "")
            self._inputs[choice, event.index] = InputReader()
            return _custom_call(event, "")
        reader = self._inputs.get((choice, event.index))
        if reader is None:
            return {"function": {"arguments": event.text}} if isinstance(event, ToolCallArguments) else None
        text = reader.feed(event.text) if isinstance(event, ToolCallArguments) else reader.finish()
        return {"custom": {"input": text}} if text else None

    def _chunk(self, index: int, delta: JsonObject, more: JsonObject | None = None) -> JsonObject:
        choice: JsonObject = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **(more or {})}
        tail = {"usage": usage(self._plan, self._choices)} if self._continuous_usage else self._tail
        return {**self._head, "choices": [choice], **tail}

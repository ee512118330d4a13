"""From the core's pieces to Anthropic's message, whole and in events, as plain dicts."""

import orjson

from server.api.common.usage import apart, mode_told
from server.api.messages.blocks import Content
from server.api.messages.body import MessagesRequest
from server.api.messages.errors import anthropic_error
from server.core.choice import cached_tokens, prompt_tokens
from server.core.events import Piece
from server.core.run import Run
from server.errors import ApiError, JsonObject
from server.http.sse import encode_event, encode_json

HOLE = "\0"  # where text goes in an encoded event; nothing else there is this string
SILENT_PIECES = 64  # that show nothing, as hidden thinking does: after so many a ping says that the stream lives
PING = encode_event({"type": "ping"}, "ping")


class MessageAnswer:
    """The answer to one request; a message as it is so far."""

    def __init__(self, run: Run, asked: MessagesRequest, model: str) -> None:
        plan = run.plan
        hidden = asked.thinking is not None and asked.thinking.display == "omitted"
        self.content = Content(has_thinking=plan.shows_thinking, shows_thinking=not hidden)
        self._plan = plan
        (self._choice,) = run.choices
        self._asked = asked
        self._model = model

    @property
    def request_id(self) -> str:
        """Of the HTTP request."""
        return self._plan.record.id

    @property
    def is_generated(self) -> bool:
        """False where only the prompt is read: the one token that the engine must generate for that is dropped."""
        return self._asked.max_tokens > 0

    def message(self) -> JsonObject:
        """The message without what is known at its end."""
        return {
            "id": self._plan.id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            **mode_told(self._choice, self._plan),
            **dict.fromkeys(("stop_reason", "stop_sequence", "stop_details", "container")),
            "usage": {
                **self.usage(),
                "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
                "service_tier": "standard",
                "inference_geo": None,
            },
        }

    def usage(self) -> JsonObject:
        """The tokens so far. Those of the prompt are the three kinds of input together."""
        cached = cached_tokens([self._choice])
        generated, thought = (
            (self._choice.completion_tokens, self._choice.reasoning_tokens) if self.is_generated else (0, 0)
        )
        return {
            "input_tokens": prompt_tokens([self._choice]) - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": generated,
            "output_tokens_details": {"thinking_tokens": thought, **apart(self._plan, [self._choice])},
            "server_tool_use": None,
        }

    def end(self) -> JsonObject:
        """How the message ended."""
        choice = self._choice
        ended: JsonObject = {
            "stop_reason": self._stop_reason(),
            "stop_sequence": choice.stop_reason,
            "stop_details": None,
            "container": None,
        }
        if choice.thinking_finish is not None:
            ended["reasoning_finish_reason"] = choice.thinking_finish
        return ended

    def edits(self) -> JsonObject:
        """Of a context that the client wants to be managed: none."""
        return {} if self._asked.context_management is None else {"context_management": {"applied_edits": []}}

    def _stop_reason(self) -> str:
        choice = self._choice
        if choice.finish == "length" or not self.is_generated:
            is_cut = choice.sampling.max_tokens < self._asked.max_tokens
            return "model_context_window_exceeded" if is_cut else "max_tokens"
        if choice.stop_reason is not None:
            return "stop_sequence"
        return "tool_use" if self.content.has_calls else "end_turn"


class MessageResponse:
    """The response to a request that was not streamed."""

    def __init__(self, answer: MessageAnswer) -> None:
        self._answer = answer

    def add(self, piece: Piece) -> None:
        """Takes the next piece."""
        if self._answer.is_generated:
            for event in piece.events:
                self._answer.content.add(event)

    def response(self) -> JsonObject:
        """The whole response, after the last piece."""
        answer = self._answer
        content = [block.whole() for block in answer.content.blocks]
        return {**answer.message(), "content": content, **answer.end(), **answer.edits()}


class MessageEvents:
    """The events of one streamed response, encoded. What stands around text is encoded once for each block."""

    def __init__(self, answer: MessageAnswer) -> None:
        self._answer = answer
        self._around: list[bytes] = []
        self._silent = 0

    def begin(self) -> bytes:
        """The message, empty, and a sign of life."""
        return _encoded({"type": "message_start", "message": self._answer.message()}) + PING

    def piece(self, piece: Piece) -> bytes:
        """The events of a piece."""
        events = b""
        if self._answer.is_generated:
            for event in piece.events:
                begins, text = self._answer.content.add(event)
                if begins:
                    events += self._next_block()
                if text and self._around:
                    events += encode_json(text).join(self._around)
        self._silent = 0 if events else self._silent + 1
        if self._silent == SILENT_PIECES:
            self._silent = 0
            return PING
        return events

    def finish(self) -> bytes:
        """The end of the last block, and of the message."""
        answer = self._answer
        ended = {"type": "message_delta", "delta": answer.end(), "usage": answer.usage(), **answer.edits()}
        return self._end_of_block(len(answer.content.blocks)) + _encoded(ended) + _encoded({"type": "message_stop"})

    def error(self, error: ApiError) -> bytes:
        """Anthropic's error as the last event."""
        return _encoded(anthropic_error(error, self._answer.request_id))

    def _next_block(self) -> bytes:
        """The end of the block before the last, and the beginning of the last."""
        blocks = self._answer.content.blocks
        index, block = len(blocks) - 1, blocks[-1]
        delta = block.delta(HOLE)
        event = {"type": "content_block_delta", "index": index, "delta": delta}
        self._around = [] if delta is None else _encoded(event).split(orjson.dumps(HOLE))
        start = {"type": "content_block_start", "index": index, "content_block": block.empty}
        return self._end_of_block(index) + _encoded(start)

    def _end_of_block(self, number: int) -> bytes:
        """Of the block with this number, counted from 1; there may be none."""
        if number == 0:
            return b""
        index = number - 1
        delta = self._answer.content.blocks[index].last_delta()
        last = b"" if delta is None else _encoded({"type": "content_block_delta", "index": index, "delta": delta})
        return last + _encoded({"type": "content_block_stop", "index": index})


def _encoded(event: JsonObject) -> bytes:
    """An event, named for its type."""
    return encode_event(event, str(event["type"]))

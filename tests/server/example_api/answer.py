"""What `POST /ask` answers, whole or in events."""

from typing import Literal

from chat_templates.events import AnswerText, ReasoningText
from server.api.common.schema import Answer, Count
from server.core.events import Piece
from server.core.run import Run
from server.errors import ApiError, JsonObject
from server.http.sse import encode_event

NAMES = {ReasoningText: "thinking", AnswerText: "answer"}


class AskAnswer(Answer):
    """The answer; in a stream, more of it."""

    thinking: str | None = None
    """What the model thought, in a mode that thinks."""
    answer: str | None = None
    """What it answered."""
    ended: Literal["stop", "length"] | None = None
    """Why it ended; in a stream, in the last event."""
    tokens: Count | None = None
    """How many tokens were generated; in a stream, in the last event."""


class AskWriter:
    """Puts the pieces together, or writes an event of each."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._texts: dict[str, str] = {}

    def add(self, piece: Piece) -> None:
        """Takes the next piece of a response."""
        for name, text in _texts(piece):
            self._texts[name] = self._texts.get(name, "") + text

    def response(self) -> JsonObject:
        """The whole response."""
        return {**self._texts, **self._end()}

    def begin(self) -> bytes:
        """Nothing: a stream begins with its first text."""
        return b""

    def piece(self, piece: Piece) -> bytes:
        """The events of a piece."""
        return b"".join(encode_event({name: text}) for name, text in _texts(piece))

    def finish(self) -> bytes:
        """The last event."""
        return encode_event(self._end())

    def error(self, error: ApiError) -> bytes:
        """The last event of a stream that failed."""
        return encode_event(error.body())

    def _end(self) -> JsonObject:
        (choice,) = self._run.choices
        return {"ended": choice.finish, "tokens": choice.completion_tokens}


def _texts(piece: Piece) -> list[tuple[str, str]]:
    return [(NAMES[type(event)], event.text) for event in piece.events if isinstance(event, ReasoningText | AnswerText)]

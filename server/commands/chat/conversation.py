"""What was said and how it was asked for: the form in which the page at `/` keeps it (`ui/src/chat/saved.ts`).

Knows nothing of terminals and connections. Times are milliseconds, as in the page; counts are the server's own.
"""

import secrets
import time
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

Json = dict[str, Any]
Phase = Literal["waiting", "thinking", "answering", "done", "stopped", "failed"]
TITLE_LENGTH = 60
LEAST_SPAN = 10.0
"""Milliseconds; over a shorter span no rate is shown. What came in one piece has none at all."""
SAMPLING: dict[str, type[int] | type[float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
    "seed": int,
    "max_completion_tokens": int,
}
"""The sampling fields that can be set, as in the page."""


def new_id() -> str:
    """Unique enough."""
    return secrets.token_hex(12)


class Mode(msgspec.Struct, frozen=True):
    """A mode of a served model."""

    name: str
    thinks: bool


class Model(msgspec.Struct, frozen=True):
    """A served model with its modes."""

    name: str
    modes: tuple[Mode, ...]
    default_mode: str

    def mode(self, name: str) -> Mode | None:
        """The one of this name, if the model has it."""
        return next((mode for mode in self.modes if mode.name == name), None)


class Progress(msgspec.Struct, rename="camel", kw_only=True):
    """How far a run is. `first_token`, `last_token`, `first_answer` and `elapsed` count from when it was sent.

    `first_tokens`: how many had come with the first.
    """

    phase: Phase = "waiting"
    completion_id: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    completion_tokens: int = 0
    first_token: float | None = None
    first_tokens: int = 0
    last_token: float | None = None
    first_answer: float | None = None
    elapsed: float = 0.0
    finish: str | None = None
    reasoning_finish: str | None = None
    error: str | None = None
    tool_calls: list[Json] = []
    stalled: bool = False

    @property
    def token_rate(self) -> float | None:
        """Tokens per second between the first arrival and the last.

        None: most came with the first, or all too quickly to tell.
        """
        span = (self.last_token or 0.0) - (self.first_token or 0.0)
        later = self.completion_tokens - self.first_tokens
        return None if span < LEAST_SPAN or later < self.completion_tokens / 2 else 1000 * later / span


class Run(msgspec.Struct, kw_only=True):
    """One answer: the request's `body`, and what has come of it."""

    mode: str
    thinks: bool
    body: Json
    id: str = msgspec.field(default_factory=new_id)
    thinking: str = ""
    answer: str = ""
    logprobs: list[Json] = []
    progress: Progress = msgspec.field(default_factory=Progress)

    @property
    def is_empty(self) -> bool:
        """Whether nothing has come yet that a person could read."""
        return not self.thinking and not self.answer

    def begin_anew(self) -> None:
        """Forgets what came: the same is asked once more."""
        self.thinking = self.answer = ""
        self.progress = Progress()


class UserTurn(msgspec.Struct, tag_field="role", tag="user"):
    """What the person said."""

    text: str


class ModelTurn(msgspec.Struct, tag_field="role", tag="assistant", rename="camel"):
    """The answers to it, one for each mode that was asked; the conversation goes on from the `chosen` one."""

    runs: list[Run]
    chosen: int = 0
    side_by_side: bool = False


class Settings(msgspec.Struct, kw_only=True):
    """What is asked for with each message. Texts are as typed; empty is the mode's own."""

    model: str = ""
    mode: str = ""
    system: str = ""
    budget: str = ""
    sampling: dict[str, str] = {}
    tools: str = ""
    schema: str = ""
    logprobs: bool = False


class Conversation(msgspec.Struct, kw_only=True):
    """All of it; `updated` is when, in milliseconds since 1970."""

    id: str = msgspec.field(default_factory=new_id)
    title: str = ""
    updated: int = 0
    settings: Settings = msgspec.field(default_factory=Settings)
    turns: list[UserTurn | ModelTurn] = msgspec.field(default_factory=list)

    def exchanges(self) -> Iterator[tuple[UserTurn, ModelTurn]]:
        """Each message with what was answered."""
        for said, answered in zip(self.turns[::2], self.turns[1::2], strict=True):
            assert isinstance(said, UserTurn)
            assert isinstance(answered, ModelTurn)
            yield said, answered

    def add(self, text: str, runs: list[Run], chosen: int) -> None:
        """Adds an exchange."""
        self.turns += [UserTurn(text), ModelTurn(runs, chosen, side_by_side=len(runs) > 1)]
        self.updated = int(time.time() * 1000)
        if not self.title:
            self.title = text if len(text) <= TITLE_LENGTH else text[:TITLE_LENGTH] + "…"

    def new_run(self, text: str, mode: Mode) -> Run:
        """Asks `text` in `mode` after what was said so far."""
        settings = self.settings
        body: Json = {
            "model": settings.model,
            "messages": [*self._messages(), {"role": "user", "content": text}],
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "reasoning_mode": mode.name,
        }
        if mode.thinks and settings.budget:
            body["thinking_token_budget"] = int(settings.budget)
        body |= {name: SAMPLING[name](value) for name, value in settings.sampling.items()}
        return Run(mode=mode.name, thinks=mode.thinks, body=body)

    def _messages(self) -> Iterator[Json]:
        if self.settings.system:
            yield {"role": "system", "content": self.settings.system}
        for said, answered in self.exchanges():
            if answer := answered.runs[answered.chosen].answer:
                yield {"role": "user", "content": said.text}
                yield {"role": "assistant", "content": answer}

"""Reads one streamed answer: when its tokens came, and how many there were by the server's own count.

It is fed with the bytes of a response as they arrive. It knows server-sent events and OpenAI's chunks, not connections.
Tokens are counted from `usage`, never from events: servers put several tokens into one event.
"""

from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One request. Times in seconds after the start of the load; None if the moment never came.

    `first` is the first event with text, thinking or answer; `first_answer` the first with text of the answer. `error`
    says why a request did not count.
    """

    thinks: bool
    started: float
    first: float | None
    first_answer: float | None
    ended: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    events: int
    error: str | None = None


class StreamAccount:
    """Gathers one response. `feed` takes its body in any pieces; `sample` is called at its end."""

    def __init__(self, started: float, *, thinks: bool) -> None:
        self._started = started
        self._thinks = thinks
        self._rest = b""
        self._first: float | None = None
        self._first_answer: float | None = None
        self._ended = started
        self._events = 0
        self._usage: dict[str, Any] | None = None
        self._error: str | None = None

    def feed(self, data: bytes, now: float) -> None:
        """Takes the next bytes, which came at `now`."""
        *events, self._rest = (self._rest + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if event.startswith(b"data: ") and event != b"data: [DONE]":
                self._take(event[6:], now)

    def sample(self, now: float, error: str | None = None) -> Sample:
        """The sample of the request; `error` is what went wrong with the connection, if anything."""
        usage = self._usage or {}
        if self._usage is None:
            error = error or self._error or "the response ended without usage"
        return Sample(
            thinks=self._thinks,
            started=self._started,
            first=self._first,
            first_answer=self._first_answer,
            ended=self._ended if error is None and self._error is None else now,
            prompt_tokens=usage.get("prompt_tokens", 0),
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
            completion_tokens=usage.get("completion_tokens", 0),
            events=self._events,
            error=error or self._error,
        )

    def _take(self, payload: bytes, now: float) -> None:
        try:
            chunk = orjson.loads(payload)
        except orjson.JSONDecodeError:
            self._error = f"an event that is no JSON: {payload[:100]!r}"
            return
        if "error" in chunk:
            self._error = f"an error event: {payload[:300].decode(errors='replace')}"
            return
        self._ended = now
        if chunk.get("usage"):
            self._usage = chunk["usage"]
        if chunk.get("choices"):
            self._take_delta(chunk["choices"][0].get("delta") or {}, now)

    def _take_delta(self, delta: dict[str, Any], now: float) -> None:
        answer = delta.get("content")
        if not (answer or delta.get("reasoning_content") or delta.get("reasoning")):
            return
        self._events += 1
        if self._first is None:
            self._first = now
        if answer and self._first_answer is None:
            self._first_answer = now

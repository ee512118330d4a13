"""Reads the tokens of one turn: events of thinking and answer, up to a stop string, and log-probabilities with them."""

from typing import NamedTuple

from chat_templates.events import AnswerText, Event, ToolCallEnd, joined
from chat_templates.format import ChatFormat
from chat_templates.parser import OutputParser
from server.core.generate import Advance, Turn
from server.core.job import Job
from server.core.logprobs import LogprobJson, LogprobReader
from server.core.stop_strings import StopStrings


class Piece(NamedTuple):
    """What some tokens add to the choice of that number; `logprobs` and `token_ids` are None where not asked for."""

    choice: int
    events: list[Event]
    logprobs: dict[str, list[LogprobJson]] | None
    token_ids: list[int] | None


class TurnReader:
    """Reads the turn that is choice `index` of `job`; ends it where the answer reaches a stop string."""

    def __init__(self, fmt: ChatFormat, job: Job, index: int, turn: Turn) -> None:
        self.answering = False
        self.choice = index
        self.turn = turn
        self._fmt = fmt
        self._stop = StopStrings(job.stops)
        self._shows_ids = job.shows_token_ids
        self._shown_ids = 0
        self._form = job.answer_format
        self._parser = OutputParser(
            fmt,
            thinking_open=turn.thinking,
            calls=self._form.calls,
            calls_in_thinking=self._form.calls_in_thinking,
        )
        top = job.turns[index].sampling.logprobs
        self._logprobs = None if top is None else LogprobReader(fmt, top, thinking=turn.thinking)
        self._shown = ("content", "reasoning") if job.reasoning_logprobs else ("content",)

    def read(self, advance: Advance) -> Piece:
        """What these tokens add."""
        if self._logprobs is not None:
            self._logprobs.feed(advance)
        events = self._parse(advance.token_ids)
        if advance.closed:
            events += self._parser.end_thinking()
        return self._piece(self._until_stop(events))

    def finish(self) -> Piece:
        """What was held back until the turn's end."""
        events = self._until_stop(self._parser.finish())
        rest = self._stop.finish()
        return self._piece([*events, AnswerText(rest)] if rest else events)

    def _parse(self, token_ids: list[int]) -> list[Event]:
        """Thinking opens once, in the prompt, so that its budget holds; calls are read where there can be any."""
        fmt = self._fmt
        if fmt.control_ids.isdisjoint(token_ids):  # nearly always
            return self._parser.feed(token_ids)
        tags = {fmt.tool_call_id, fmt.tool_call_end_id}
        events: list[Event] = []
        for token_id in token_ids:
            may_call = self._form.calls_in_thinking if self._parser.is_thinking else self._form.calls
            if token_id != fmt.think_id and (may_call or token_id not in tags):
                events += self._parser.feed([token_id])
        return joined(events)

    def _piece(self, events: list[Event]) -> Piece:
        logprobs = token_ids = None
        if self._logprobs is not None:
            logprobs = {name: entries for name, entries in self._logprobs.take().items() if name in self._shown}
        if self._shows_ids:
            token_ids = self.turn.token_ids[self._shown_ids :]
            self._shown_ids += len(token_ids)
        return Piece(self.choice, events, logprobs, token_ids)

    def _until_stop(self, events: list[Event]) -> list[Event]:
        shown: list[Event] = []
        for event in events:
            if not isinstance(event, AnswerText):
                shown.append(event)
                if isinstance(event, ToolCallEnd) and not self._form.parallel:
                    if event.complete or self.turn.finish is None:  # else its limit cut the call off
                        self.turn.stop()
                    break
                continue
            self.answering = True
            text = self._stop.feed(event.text)
            if text:
                shown.append(AnswerText(text))
            if self._stop.hit:
                self.turn.stop()
        return shown

"""Reads the tokens of one choice: events of thinking and answer, up to a stop string, with their log-probabilities."""

from chat_templates.events import AnswerText, Event, ReasoningText, ToolCallEnd, ToolCallStart, joined
from chat_templates.format import ChatFormat
from chat_templates.parser import make_parser
from server.core.choice import Advance, Choice
from server.core.drafted import EitherChoice
from server.core.events import LogprobEntry, Piece
from server.core.logprobs import LogprobReader
from server.core.plan import ChoicePlan, Plan
from server.core.stop_strings import StopStrings


class ChoiceReader:
    """Reads choice `index` of `plan`, from its beginning; ends it where the answer reaches a stop string. `own`: its
    plan, or that part of it by which it goes.
    """

    def __init__(self, fmt: ChatFormat, plan: Plan, index: int, choice: Choice, own: ChoicePlan) -> None:
        self.answering = False
        self.index = index
        self.choice = choice
        self._fmt = fmt
        self._stop = StopStrings(plan.stop.texts, is_shown=plan.stop.is_shown)
        self._has_stops = bool(plan.stop.texts)
        self._least = plan.stop.min_tokens if plan.stop.texts else 0
        self._shows_stop = plan.stop.is_shown
        self._shows_control = plan.shows_control_tokens
        self._shows_ids = plan.shows_token_ids
        self._shown_ids = 0
        self._is_conversation = plan.is_conversation
        self._form = plan.answer_format
        self._parser = make_parser(
            fmt,
            thinking_open=choice.opens_thinking,
            calls=self._form.calls,
            calls_in_thinking=self._form.calls_in_thinking,
            tools=self._form.tools,
        )
        if own.thinking is not None and not choice.opens_thinking:
            self._parser.end_thinking()  # closed before it began
        self._has_told_prompt = False
        top = own.sampling.logprobs
        self._top = top or own.sampling.prompt_logprobs or 0
        self._logprobs = (
            None
            if top is None
            else LogprobReader(
                fmt,
                top,
                thinking=choice.opens_thinking,
                names_ids=plan.logprobs_as_ids,
                control=self._shows_control,
            )
        )
        self._has_entries = top is not None or own.sampling.prompt_logprobs is not None
        self._shown = ("content", "reasoning") if plan.reasoning_logprobs else ("content",)

    def read(self, advance: Advance) -> Piece:
        """What these tokens add."""
        if self._logprobs is not None:
            self._logprobs.feed(advance)
        events = self._parse_all(advance) if advance.opened else self._parse(advance.token_ids)
        if advance.closed:
            events += self._parser.end_thinking()
        is_thought = len(events) == 1 and type(events[0]) is ReasoningText  # in which nothing stops
        shown = events if is_thought else self._until_stop(events)
        if self._has_stops and self._stop.would_end(self._parser.held) and self._may_stop:
            shown += self._until_stop(self._parser.release())
        return self._piece(shown)

    def finish(self) -> Piece:
        """What was held back until the choice's end."""
        stopped_by = self.choice.stop_reason
        events = self._parse([stopped_by]) if self._shows_stop and isinstance(stopped_by, int) else []
        events += self._parser.finish(is_cut=self.choice.finish == "length")
        events = self._until_stop(joined(events))
        rest = self._stop.finish()
        return self._piece([*events, AnswerText(rest)] if rest else events)

    @property
    def _may_stop(self) -> bool:
        """Whether there are enough tokens for stop strings to count, as in vLLM."""
        return not self._least or self.choice.completion_tokens > self._least

    def _parse_all(self, advance: Advance) -> list[Event]:
        """With the tags at which thinking opens in the answer."""
        ids, events, start = advance.token_ids, [], 0
        for end in advance.opened:
            events += self._parse(ids[start : end - 1])
            self._parser.reopens = True
            events += self._parse(ids[end - 1 : end])
            self._parser.reopens = False
            start = end
        return joined([*events, *self._parse(ids[start:])])

    def _parse(self, token_ids: list[int]) -> list[Event]:
        """Control tokens that say nothing are text where the client wants them."""
        fmt = self._fmt
        if not self._shows_control or fmt.control_ids.isdisjoint(token_ids):  # nearly always
            return self._parser.feed(token_ids)
        events: list[Event] = []
        for token_id in token_ids:
            may_call = self._form.calls_in_thinking if self._parser.is_thinking else self._form.calls
            is_tag = token_id in fmt.tag_ids or (may_call and token_id in fmt.calls.marks)
            if token_id in fmt.control_ids and not (is_tag and self._is_conversation):
                events += self._parser.show(token_id)
            else:
                events += self._parser.feed([token_id])
        return joined(events)

    def _piece(self, events: list[Event]) -> Piece:
        logprobs = token_ids = None
        if self._logprobs is not None:
            logprobs = {name: entries for name, entries in self._logprobs.take().items() if name in self._shown}
        if self._shows_ids:
            token_ids = self.choice.token_ids[self._shown_ids :]
            self._shown_ids += len(token_ids)
        entries = self._count_entries(logprobs) if self._has_entries else 0
        return Piece(self.index, events, logprobs, token_ids, entries)

    def _count_entries(self, logprobs: dict[str, list[LogprobEntry]] | None) -> int:
        entries = 0 if logprobs is None else (1 + self._top) * sum(map(len, logprobs.values()))
        if not self._has_told_prompt and self.choice.prompt_logprobs is not None:
            self._has_told_prompt = True
            entries += (1 + self._top) * len(self.choice.prompt_logprobs)
        return entries

    def _until_stop(self, events: list[Event]) -> list[Event]:
        shown: list[Event] = []
        for event in events:
            if not isinstance(event, AnswerText):
                shown.append(event)
                self.answering |= isinstance(event, ToolCallStart) and not self._parser.is_thinking
                if isinstance(event, ToolCallEnd) and not self._form.parallel:
                    if event.complete or self.choice.finish is None:  # else its limit cut the call off
                        self.choice.stop()
                    break
                continue
            self.answering = True
            if not self._may_stop:
                shown.append(event)
                continue
            text = self._stop.feed(event.text)
            if text:
                shown.append(AnswerText(text))
            if self._stop.hit:
                self.choice.stop(self._stop.reached)
        return shown


class DraftReader:
    """Reads a choice that begins as a draft: as any other, once it is known by which plan it goes. Thinking in a draft
    that is kept is none of the answer, as in any mode that does not think.
    """

    def __init__(self, fmt: ChatFormat, plan: Plan, index: int, choice: EitherChoice) -> None:
        self.index = index
        self.choice = choice
        self._fmt = fmt
        self._plan = plan
        self._reader: ChoiceReader | None = None

    @property
    def answering(self) -> bool:
        """Whether tokens of the answer have come."""
        return self._reader is not None and self._reader.answering

    def read(self, advance: Advance) -> Piece:
        """What these tokens add."""
        return self._shown(self._own().read(advance))

    def finish(self) -> Piece:
        """What was held back until the choice's end."""
        return self._shown(self._own().finish())

    def _shown(self, piece: Piece) -> Piece:
        if self.choice.is_dropped or not any(isinstance(event, ReasoningText) for event in piece.events):
            return piece
        return piece._replace(events=[event for event in piece.events if not isinstance(event, ReasoningText)])

    def _own(self) -> ChoiceReader:
        if self._reader is None:
            self._reader = ChoiceReader(self._fmt, self._plan, self.index, self.choice, self.choice.plan)
        return self._reader


def make_reader(fmt: ChatFormat, plan: Plan, index: int, choice: Choice) -> ChoiceReader | DraftReader:
    """The reader of choice `index`."""
    if isinstance(choice, EitherChoice):
        return DraftReader(fmt, plan, index, choice)
    return ChoiceReader(fmt, plan, index, choice, plan.choices[index])

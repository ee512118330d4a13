"""Runs a chat job: the engine's tokens to events of thinking and answer, and those to one response or a stream.

Response and stream are built from the same events, which is why they are equal.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from chat_templates.events import AnswerText, Event, ReasoningText
from chat_templates.format import ChatFormat
from chat_templates.parser import OutputParser
from server.admission import Job
from server.chat_objects import ChunkWriter, completion
from server.engine_client import EngineUnavailable, RequestFailed
from server.errors import ApiError, BadRequestError, JsonObject
from server.generate import Advance, Turn, run_turn
from server.metrics import RequestWatch
from server.serving import Serving
from server.sse import DONE, encode_event
from server.stop_strings import StopStrings


class TurnReader:
    """Reads a turn's tokens; ends the turn where the answer reaches a stop string."""

    def __init__(self, fmt: ChatFormat, turn: Turn, stops: tuple[str, ...]) -> None:
        self.answering = False
        self._fmt = fmt
        self._turn = turn
        self._parser = OutputParser(fmt, "reasoning" if turn.thinking else "standard")
        self._stop = StopStrings(stops)
        # Thinking opens once, in the prompt, so that its budget holds; and no tools were offered that could be called.
        self._ignored = {fmt.think_id, fmt.tool_call_id, fmt.tool_call_end_id}

    def read(self, advance: Advance) -> list[Event]:
        """What these tokens add."""
        events = self._parser.feed([token_id for token_id in advance.token_ids if token_id not in self._ignored])
        if advance.closed:
            events += self._parser.finish()
            self._parser = OutputParser(self._fmt, "standard")
        return self._until_stop(events)

    def finish(self) -> list[Event]:
        """What was held back until the turn's end."""
        events = self._until_stop(self._parser.finish())
        rest = self._stop.finish()
        return [*events, AnswerText(rest)] if rest else events

    def _until_stop(self, events: list[Event]) -> list[Event]:
        shown: list[Event] = []
        for event in events:
            if not isinstance(event, AnswerText):
                shown.append(event)
                continue
            self.answering = True
            text = self._stop.feed(event.text)
            if text:
                shown.append(AnswerText(text))
            if self._stop.hit:
                self._turn.stop()
        return shown


async def run_chat(job: Job, turn: Turn, serving: Serving) -> AsyncGenerator[list[Event], None]:
    """The events of a job as they come; raises ApiError."""
    reader = TurnReader(serving.fmt, turn, job.stops)
    with serving.metrics.watch(job.mode, job.arrived) as watch, serving.one_more():
        try:
            advances = run_turn(serving.engine, turn, job.id, job.priority, one_by_one=bool(job.stops))
            async with aclosing(advances):
                async for advance in advances:
                    events = reader.read(advance)
                    watch.tokens(turn.completion_tokens, answering=reader.answering)
                    if events:
                        yield events
            yield reader.finish()
        except (asyncio.CancelledError, GeneratorExit):
            watch.outcome = "cancelled"
            raise
        except EngineUnavailable as error:
            raise serving.unavailable(str(error) or serving.describe_engine()) from error
        except RequestFailed as error:
            watch.outcome = "rejected"
            raise BadRequestError(str(error)) from error
        else:
            watch.outcome = "completed"
        finally:
            _count(watch, job, turn, serving)


async def complete(job: Job, serving: Serving) -> JsonObject:
    """The whole response; raises ApiError."""
    turn = new_turn(job, serving)
    reasoning, answer = [], []
    async with aclosing(run_chat(job, turn, serving)) as batches:
        async for events in batches:
            reasoning += [event.text for event in events if isinstance(event, ReasoningText)]
            answer += [event.text for event in events if isinstance(event, AnswerText)]
    return completion(job, turn, serving.settings.model_name, "".join(reasoning), "".join(answer))


async def stream(job: Job, serving: Serving, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """The response as server-sent events. Raises ApiError before the first event; later, one event tells the error."""
    turn = new_turn(job, serving)
    writer = ChunkWriter(job, serving.settings.model_name, include_usage=include_usage)
    shown = ReasoningText | AnswerText if job.shows_thinking else AnswerText
    started = False
    try:
        async with aclosing(run_chat(job, turn, serving)) as batches:
            async for events in batches:
                chunks = [writer.text(event) for event in events if isinstance(event, shown)]
                if not started:
                    chunks.insert(0, writer.role())
                    started = True
                if chunks:
                    yield b"".join(map(encode_event, chunks))
    except ApiError as error:
        if not started:
            raise
        yield encode_event(error.body())
        return
    last = [writer.finish(turn), writer.usage(turn)] if include_usage else [writer.finish(turn)]
    yield b"".join(map(encode_event, last)) + DONE


def new_turn(job: Job, serving: Serving) -> Turn:
    """The job's turn, not yet begun."""
    return Turn(job.prompt_ids, job.sampling, serving.fmt.think_end_id, job.thinking)


def _count(watch: RequestWatch, job: Job, turn: Turn, serving: Serving) -> None:
    watch.count(
        prompt=len(job.prompt_ids),
        cached=turn.cached_tokens or 0,
        reasoning=turn.reasoning_tokens,
        answer=turn.completion_tokens - turn.reasoning_tokens,
    )
    if turn.thinking_finish is not None:
        serving.metrics.reasoning_finish.labels(turn.thinking_finish).inc()

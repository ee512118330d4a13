"""OpenAI's objects of a chat completion, whole and in chunks, as plain dicts."""

from collections import defaultdict
from collections.abc import Sequence

from chat_templates.events import AnswerText, Event, ReasoningText, ToolCallArguments, ToolCallStart
from server.errors import JsonObject
from server.turns.generate import Turn
from server.turns.job import Job
from server.turns.logprobs import LogprobJson
from server.turns.reader import Piece


class Gathered:
    """The pieces of one choice, put together."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._answer: list[str] = []
        self._calls: list[ToolCallStart] = []
        self._arguments: list[list[str]] = []
        self._logprobs = defaultdict[str, list[LogprobJson]](list)

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
            self._logprobs[name] += entries

    def message(self, *, shows_thinking: bool) -> JsonObject:
        """The choice's message."""
        answer = "".join(self._answer)
        message: JsonObject = {"role": "assistant", "content": answer, "refusal": None}
        if self._calls:
            message["content"] = answer or None
            message["tool_calls"] = [
                _call(call, "".join(texts)) for call, texts in zip(self._calls, self._arguments, strict=True)
            ]
        if shows_thinking:
            reasoning = "".join(self._reasoning)
            message |= {"reasoning_content": reasoning, "reasoning": reasoning}
        return message

    @property
    def has_calls(self) -> bool:
        """Whether the model called a tool."""
        return bool(self._calls)

    def logprobs(self) -> JsonObject | None:
        """The choice's log-probabilities, if they were asked for."""
        return {"refusal": None, **self._logprobs} if self._logprobs else None


def completion(job: Job, turns: Sequence[Turn], model: str, gathered: Sequence[Gathered]) -> JsonObject:
    """The response to a request that was not streamed."""
    choices = [
        {
            "index": index,
            "message": choice.message(shows_thinking=job.shows_thinking),
            "logprobs": choice.logprobs(),
            **_how_it_ended(turn, has_calls=choice.has_calls),
        }
        for index, (turn, choice) in enumerate(zip(turns, gathered, strict=True))
    ]
    return {
        "id": job.id,
        "object": "chat.completion",
        "created": job.created,
        "model": model,
        "choices": choices,
        "usage": usage(job, turns),
    }


def usage(job: Job, turns: Sequence[Turn]) -> JsonObject:
    """The token counts of finished turns."""
    completion_tokens = sum(turn.completion_tokens for turn in turns)
    return {
        "prompt_tokens": job.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": job.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": turns[0].cached_tokens or 0},
        "completion_tokens_details": {"reasoning_tokens": sum(turn.reasoning_tokens for turn in turns)},
    }


def _call(call: ToolCallStart, arguments: str) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _how_it_ended(turn: Turn, *, has_calls: bool) -> JsonObject:
    calls = has_calls and turn.finish == "stop"
    ended: JsonObject = {"finish_reason": "tool_calls" if calls else turn.finish}
    if turn.thinking_finish is not None:
        ended["reasoning_finish_reason"] = turn.thinking_finish
    return ended


class ChunkWriter:
    """The chunks of one streamed response. With `include_usage` each has the field, null but in the last."""

    def __init__(self, job: Job, model: str, *, include_usage: bool) -> None:
        self._job = job
        self._head: JsonObject = {
            "id": job.id,
            "object": "chat.completion.chunk",
            "created": job.created,
            "model": model,
        }
        self._tail: JsonObject = {"usage": None} if include_usage else {}
        self._with_calls: set[int] = set()

    def role(self, index: int) -> JsonObject:
        """The first chunk of a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, piece: Piece) -> list[JsonObject]:
        """The chunks of a piece; its log-probabilities come with the first, which may have no text for them yet."""
        if any(isinstance(event, ToolCallStart) for event in piece.events):
            self._with_calls.add(piece.choice)
        deltas = [delta for delta in map(self._delta, piece.events) if delta is not None]
        logprobs: JsonObject | None = None
        if piece.logprobs is not None and any(piece.logprobs.values()):
            logprobs = {"refusal": None, **piece.logprobs}
            deltas = deltas or [{}]
        first, rest = deltas[:1], deltas[1:]
        return [
            *(self._chunk(piece.choice, delta, logprobs=logprobs) for delta in first),
            *(self._chunk(piece.choice, delta) for delta in rest),
        ]

    def finish(self, turns: Sequence[Turn]) -> list[JsonObject]:
        """How each choice ended and, if asked for, the token counts in a chunk without choices."""
        ends = [
            self._chunk(index, {}, _how_it_ended(turn, has_calls=index in self._with_calls))
            for index, turn in enumerate(turns)
        ]
        if not self._tail:
            return ends
        return [*ends, {**self._head, "choices": [], "usage": usage(self._job, turns)}]

    def _delta(self, event: Event) -> JsonObject | None:
        match event:
            case ReasoningText(text) if self._job.shows_thinking:
                return {"reasoning_content": text, "reasoning": text}
            case AnswerText(text):
                return {"content": text}
            case ToolCallStart(index):
                return {"tool_calls": [{"index": index, **_call(event, "")}]}
            case ToolCallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
        return None

    def _chunk(
        self, index: int, delta: JsonObject, ended: JsonObject | None = None, logprobs: JsonObject | None = None
    ) -> JsonObject:
        how = ended or {"finish_reason": None}
        choice: JsonObject = {"index": index, "delta": delta, "logprobs": logprobs, **how}
        return {**self._head, "choices": [choice], **self._tail}

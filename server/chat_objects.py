"""OpenAI's objects of a chat completion, whole and in chunks, as plain dicts."""

from chat_templates.events import AnswerText, ReasoningText
from server.admission import Job
from server.errors import JsonObject
from server.generate import Turn


def completion(job: Job, turn: Turn, model: str, reasoning: str, answer: str) -> JsonObject:
    """The response to a request that was not streamed."""
    message: JsonObject = {"role": "assistant", "content": answer, "refusal": None}
    if job.shows_thinking:
        message |= {"reasoning_content": reasoning, "reasoning": reasoning}
    choice: JsonObject = {"index": 0, "message": message, "logprobs": None, **_how_it_ended(turn)}
    return {
        "id": job.id,
        "object": "chat.completion",
        "created": job.created,
        "model": model,
        "choices": [choice],
        "usage": usage(job, turn),
    }


def usage(job: Job, turn: Turn) -> JsonObject:
    """The token counts of a finished turn."""
    return {
        "prompt_tokens": len(job.prompt_ids),
        "completion_tokens": turn.completion_tokens,
        "total_tokens": len(job.prompt_ids) + turn.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": turn.cached_tokens or 0},
        "completion_tokens_details": {"reasoning_tokens": turn.reasoning_tokens},
    }


def _how_it_ended(turn: Turn) -> JsonObject:
    ended: JsonObject = {"finish_reason": turn.finish}
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

    def role(self) -> JsonObject:
        """The first chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, event: ReasoningText | AnswerText) -> JsonObject:
        """More thinking, or more of the answer."""
        if isinstance(event, ReasoningText):
            return self._chunk({"reasoning_content": event.text, "reasoning": event.text})
        return self._chunk({"content": event.text})

    def finish(self, turn: Turn) -> JsonObject:
        """How it ended."""
        return self._chunk({}, _how_it_ended(turn))

    def usage(self, turn: Turn) -> JsonObject:
        """The token counts, in a chunk without choices."""
        return {**self._head, "choices": [], "usage": usage(self._job, turn)}

    def _chunk(self, delta: JsonObject, ended: JsonObject | None = None) -> JsonObject:
        choice: JsonObject = {"index": 0, "delta": delta, "logprobs": None, **(ended or {"finish_reason": None})}
        return {**self._head, "choices": [choice], **self._tail}

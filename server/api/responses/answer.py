"""A response as OpenAI has it, whole or as a series of events, of which the last has it whole."""

from collections.abc import Callable
from time import time

from pydantic import BaseModel

from server.api.common.usage import apart, mode_told
from server.api.responses.admission import Asked
from server.api.responses.body import JsonSchemaText, ResponseRequest
from server.api.responses.events_log import EventLog
from server.api.responses.output import ItemStatus, Output, ThinkingShown
from server.api.responses.tools import FunctionTool, HostedTool, Tool
from server.core.choice import cached_tokens, prompt_tokens
from server.core.events import Piece
from server.core.run import Run
from server.errors import ApiError, BadRequestError, JsonObject
from server.http.sse import encode_event

Keep = Callable[[JsonObject], None]


class ResponseAnswer:
    """One response under way: gathers its pieces, or writes the events that they are. `keep` is given it whole; None
    where it is not to be stored. `log` gets its events too.

    The log-probabilities, as all else, are kept until the end in a stream too: its last event has them.
    """

    def __init__(
        self,
        body: ResponseRequest,
        asked: Asked,
        run: Run,
        model: str,
        keep: Keep | None,
        *,
        log: EventLog | None = None,
    ) -> None:
        self.id = run.plan.id
        self.client = asked.request.received.client
        self.log = log
        self.is_over = False
        self._is_cancelled = False
        self._is_queued = bool(body.background)
        self._body = body
        self._asked = asked
        self._run = run
        self._keep = keep
        self._output = Output(_shown(body, run), asked.tools.offered, compacts=asked.compacts)
        self._head = {**_head(body, run, model), "store": keep is not None}
        self._number = 0

    def add(self, piece: Piece) -> None:
        """Takes the next piece of a response that is not streamed."""
        self._output.read(piece)

    def response(self) -> JsonObject:
        """The whole response."""
        self._output.finish(self._item_status())
        return self._finished()

    def begin(self) -> bytes:
        """The first events."""
        self._is_queued = False
        response = self.snapshot()
        return self._events([_event("created", response), _event("in_progress", response)])

    def piece(self, piece: Piece) -> bytes:
        """The events of a piece."""
        return self._events(self._output.read(piece))

    def finish(self) -> bytes:
        """The last events, of what was open and of the response."""
        events = self._output.finish(self._item_status())
        response = self._finished()
        kind = "completed" if response["status"] == "completed" else "incomplete"
        return self._events([*events, _event(kind, response)])

    def error(self, error: ApiError) -> bytes:
        """The last events of a stream that failed: an error, and the response with it."""
        self.is_over = True
        code = "invalid_prompt" if isinstance(error, BadRequestError) else "server_error"
        failed = {**self.snapshot("failed"), "error": {"code": code, "message": error.message}}
        if self._body.background and self._keep is not None:
            self._keep(failed)
        told: JsonObject = {"type": "error", "code": error.code or code, "message": error.message, "param": error.param}
        return self._events([{**told, **error.body()}, _event("failed", failed)])

    def snapshot(self, status: str | None = None) -> JsonObject:
        """The response so far."""
        status = status or ("cancelled" if self._is_cancelled else "queued" if self._is_queued else "in_progress")
        return {**self._head, **_of_mode(self._run), "status": status, "output": self._output.items(), "usage": None}

    def cancel(self) -> JsonObject:
        """Notes that the run was told to end; the response so far."""
        self._is_cancelled = True
        return self.snapshot()

    def _finished(self) -> JsonObject:
        self.is_over = True
        (choice,) = self._run.choices
        status = "cancelled" if self._is_cancelled else "incomplete" if choice.finish == "length" else "completed"
        response = {**self.snapshot(status), "usage": _usage(self._run)}
        if status == "completed":
            response["completed_at"] = int(time())
        elif status == "incomplete":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if choice.thinking_finish is not None:
            response["reasoning_finish_reason"] = choice.thinking_finish
        if self._keep is not None:
            self._keep(response)
        return response

    def _item_status(self) -> ItemStatus:
        return "incomplete" if self._is_cancelled or self._run.choices[0].finish == "length" else "completed"

    def _events(self, events: list[JsonObject]) -> bytes:
        """With the numbers of the events, which count through the stream."""
        for number, event in enumerate(events, self._number):
            event["sequence_number"] = number
        self._number += len(events)
        encoded = [encode_event(event, str(event["type"])) for event in events]
        if self.log is not None:
            self.log.add(encoded)
        return b"".join(encoded)


class CompactionAnswer:
    """A compaction under way: what is kept word for word, and the rest in short."""

    def __init__(self, asked: Asked, run: Run) -> None:
        self._kept = asked.kept
        self._run = run
        self._output = Output(ThinkingShown(open=False), {}, compacts=True)

    def add(self, piece: Piece) -> None:
        """Takes the next piece."""
        self._output.read(piece)

    def response(self) -> JsonObject:
        """The whole of it."""
        self._output.finish("completed")
        return {
            "id": self._run.plan.id,
            "object": "response.compaction",
            "created_at": self._run.plan.created,
            "output": [*self._kept, *self._output.items()],
            "usage": _usage(self._run),
        }


def _event(kind: str, response: JsonObject) -> JsonObject:
    return {"type": f"response.{kind}", "response": response}


def _shown(body: ResponseRequest, run: Run) -> ThinkingShown:
    options = body.reasoning
    sealed = "reasoning.encrypted_content" in (body.include or ())
    if not run.plan.shows_thinking:
        return ThinkingShown(open=False, sealed=sealed)
    summarized = options is not None and (options.summary or options.generate_summary) is not None
    return ThinkingShown(summarized=summarized, sealed=sealed)


def _head(body: ResponseRequest, run: Run, model: str) -> JsonObject:
    """What does not change; what the client left open is as it was filled in."""
    options = body.reasoning
    head: JsonObject = {
        "id": run.plan.id,
        "object": "response",
        "created_at": run.plan.created,
        "status": "in_progress",
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "previous_response_id": body.previous_response_id,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "top_logprobs": body.top_logprobs or 0,
        "reasoning": {
            "effort": body.reasoning_effort if options is None else options.effort or body.reasoning_effort,
            "summary": None if options is None else options.summary or options.generate_summary,
        },
        "text": _text(body),
        "tools": [_tool(tool) for tool in body.tools or () if not isinstance(tool, HostedTool)],
        "tool_choice": _choice(body),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "truncation": body.truncation or "disabled",
        "background": bool(body.background),
        "service_tier": "default",
        "metadata": body.metadata or {},
        "prompt_cache_key": body.prompt_cache_key,
        "safety_identifier": body.safety_identifier,
    }
    return head if body.user is None else {**head, "user": body.user}


def _of_mode(run: Run) -> JsonObject:
    """What may not be settled before the first token, where the server chooses the mode."""
    (choice,) = run.choices
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
    return {**{name: getattr(choice.sampling, name) for name in names}, **mode_told(choice, run.plan)}


def _text(body: ResponseRequest) -> JsonObject:
    form = None if body.text is None else body.text.format
    text: JsonObject = {"format": {"type": "text"} if form is None else _format(form)}
    if body.text is not None and body.text.verbosity is not None:
        text["verbosity"] = body.text.verbosity
    return text


def _format(form: BaseModel) -> JsonObject:
    """As it was asked for; of a schema, with all that OpenAI names."""
    return form.model_dump(by_alias=True, exclude_none=not isinstance(form, JsonSchemaText))


def _tool(tool: Tool) -> JsonObject:
    dumped: JsonObject = tool.model_dump(exclude_none=not isinstance(tool, FunctionTool))
    return dumped


def _choice(body: ResponseRequest) -> object:
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    return choice.model_dump()


def _usage(run: Run) -> JsonObject:
    (choice,) = run.choices
    prompt = prompt_tokens(run.choices)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached_tokens(run.choices), "cache_write_tokens": 0},
        "output_tokens": choice.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": choice.reasoning_tokens, **apart(run.plan, run.choices)},
        "total_tokens": prompt + choice.completion_tokens,
    }

"""One JSON line for each request, at its end: who, what, how much, how long, and how it ended. No text, unless kept."""

import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler

import orjson

from server.errors import ApiError, JsonObject
from server.telemetry.record import GenerationRecord, RequestRecord

STDERR = "-"
DIGITS = 4  # of seconds
logger = logging.getLogger("twogear.requests")


class _File(WatchedFileHandler):
    """A file that may be lost for a while, as on a full disk: no request ends by that, the server's log has a line when
    it begins and one when it is over.
    """

    _missed = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging."""
        try:
            self.reopenIfNeeded()
            self.stream = self.stream or self._open()
            self.stream.write(self.format(record) + self.terminator)
            self.stream.flush()
        except OSError as error:
            self._miss(error)
            return
        if self._missed:
            logger.warning("The request log is written again; it lacks %d requests.", self._missed)
            self._missed = 0

    def _miss(self, error: OSError) -> None:
        if not self._missed:
            logger.error("The request log cannot be written, requests are missing in it: %s", error)
        self._missed += 1
        with suppress(OSError):  # with what it still holds, it would fail again and again
            self.close()
        self.stream = None  # as in logging, where it is opened with the next line


class RequestLog:
    """Writes to a file, or to stderr for `-`. A file that was moved away is made anew, as logrotate expects.

    `model`: the name under which it is served. Raises OSError for a file that cannot be written.
    """

    def __init__(self, target: str, model: str) -> None:
        handler = logging.StreamHandler(sys.stderr) if target == STDERR else _File(target, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(message)s"))
        self._logger = logging.Logger("twogear.requests", logging.INFO)
        self._logger.addHandler(handler)
        self._model = model
        self._handler = handler

    def write(self, record: RequestRecord) -> None:
        """The line of a request that has ended; probes have none."""
        if not record.is_probe:
            self._logger.info(orjson.dumps(line_of(record, self._model)).decode())

    def close(self) -> None:
        """Closes the file."""
        if isinstance(self._handler, logging.FileHandler):
            self._handler.close()


def line_of(record: RequestRecord, model: str) -> JsonObject:
    """What the log says of a request; fields that mean nothing for it are left out."""
    generation, arrived = record.generation, record.arrived
    line: JsonObject = {
        "time": datetime.fromtimestamp(record.started / 1e9, UTC).isoformat(timespec="milliseconds"),
        "request_id": record.id,
        "trace_id": record.trace_id,
        "client": record.client or None,
        "method": record.method,
        "route": record.route or record.path,
        "status": record.status,
        "outcome": record.outcome,
        "error": _error(record),
        "model": None if record.mode is None else model,
        "mode": record.mode,
        "n": record.n,
        "streamed": record.streamed,
        **({} if generation is None else _generated(generation)),
        "seconds": {
            **({} if generation is None else _seconds(generation)),
            "total": None if record.ended is None else round(record.ended - arrived, DIGITS),
        },
    }
    if record.texts is not None:
        line |= {"body": record.texts.body, "choices": record.texts.choices()}
    return {name: value for name, value in line.items() if value is not None}


def _error(record: RequestRecord) -> JsonObject | None:
    """What was wrong, without the client's words: those are in the message, and may be in the rest of the field."""
    error = record.failure
    if error is None:
        return None
    if not isinstance(error, ApiError):
        return {"type": type(error).__name__}
    field = error.param and error.param.partition(".")[0].partition("[")[0]
    told = {"type": error.kind, "code": error.code, "field": field}
    if record.texts is not None:
        told["message"] = error.message
    return {name: value for name, value in told.items() if value is not None}


def _generated(generation: GenerationRecord) -> JsonObject:
    thinking = [how for how in generation.reasoning_finish_reasons if how is not None]
    return {
        "response_id": generation.response_id,
        "tokens": {
            "prompt": generation.prompt_tokens,
            "cached": generation.cached_tokens,
            "reasoning": generation.reasoning_tokens,
            "answer": generation.completion_tokens - generation.reasoning_tokens,
        },
        "max_tokens": generation.max_tokens,
        "finish_reasons": generation.finish_reasons,
        "reasoning_finish_reasons": thinking or None,
    }


def _seconds(generation: GenerationRecord) -> JsonObject:
    """Since the request's arrival."""
    moments = {
        "queue": generation.placed,
        "first_token": generation.first_token,
        "first_answer_token": generation.first_answer_token,
    }
    return {name: round(moment - generation.arrived, DIGITS) for name, moment in moments.items() if moment is not None}

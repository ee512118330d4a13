"""One JSON line for each request, at its end: who, what, how much, how long, and how it ended. No text, unless kept.

A thread of its own writes the lines, so that a slow disk, or a pipe that nobody reads, holds up no stream.
"""

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

import orjson
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from server.errors import ApiError, JsonObject
from server.telemetry.record import GenerationRecord, RequestRecord

STDERR = "-"
STDERR_FILE = 2
DIGITS = 4  # of seconds
MOST_WAITING = 16 * 1024**2
"""Bytes of lines that wait to be written."""
CLOSE_SECONDS = 2.0
"""For what waits when the server ends."""
logger = logging.getLogger("twogear.requests")


class _File:
    """Made anew where it was moved away. Raises OSError for a file that cannot be written; a pipe is opened with the
    first line, for that waits for a reader.

    Nothing is buffered here: at the end of the process a buffer would wait for the thread that is stuck with it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._file: int | None = None
        if not path.is_fifo():
            self._file = self._opened()

    def write(self, line: bytes) -> None:
        """Raises OSError."""
        if self._file is not None and self._was_moved(self._file):
            self.close()
        if self._file is None:
            self._file = self._opened()
        try:
            _write(self._file, line)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """It is opened again with the next line."""
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
            self._file = None

    def _opened(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _was_moved(self, file: int) -> bool:
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(file))
        except FileNotFoundError:
            return True


class _Stderr:
    """As the process has it."""

    def write(self, line: bytes) -> None:
        """Raises OSError."""
        _write(STDERR_FILE, line)

    def close(self) -> None:
        """It stays open."""


def _write(file: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(file, rest) :]


class RequestLog(Collector):
    """Writes to a file, or to stderr for `-`. A file that was moved away is made anew, as logrotate expects.

    Lines that cannot be written, as on a full disk, or that come faster than they are, are dropped: no request ends by
    that. They are counted, and the server's log has a line when it begins and one when it is over.

    `model`: the name under which it is served. Raises OSError for a file that cannot be written.
    """

    def __init__(self, target: str, model: str) -> None:
        self.lost = 0
        self._model = model
        self._target = _Stderr() if target == STDERR else _File(Path(target))
        self._lock = threading.Lock()  # of what both threads count
        self._waiting = 0  # bytes
        self._missing = 0  # lines since the last one that was written
        self._lines: SimpleQueue[bytes | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="request log", daemon=True)
        self._thread.start()

    def write(self, record: RequestRecord) -> None:
        """The line of a request that has ended; probes have none."""
        if record.is_probe:
            return
        line = orjson.dumps(line_of(record, record.model or self._model), option=orjson.OPT_APPEND_NEWLINE)
        with self._lock:
            fits = self._waiting + len(line) <= MOST_WAITING
            self._waiting += len(line) if fits else 0
        if fits:
            self._lines.put(line)
        else:
            self._miss(f"{MOST_WAITING} bytes wait to be written")

    @property
    def collectors(self) -> Sequence[Collector]:
        """Itself: how many lines it lacks."""
        return (self,)

    def collect(self) -> Iterable[Metric]:
        """Called by the registry of metrics."""
        yield CounterMetricFamily("twogear_request_log_lost", "Requests that the request log lacks", value=self.lost)

    def close(self) -> None:
        """Writes what waits, if that takes no longer than CLOSE_SECONDS, and closes the file."""
        self._lines.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._target.write(line)
            except OSError as error:
                self._miss(str(error))
            else:
                self._wrote()
            with self._lock:
                self._waiting -= len(line)
        self._target.close()

    def _miss(self, why: str) -> None:
        with self._lock:
            self.lost += 1
            self._missing += 1
            is_first = self._missing == 1
        if is_first:
            logger.error("The request log cannot be written, requests are missing in it: %s", why)

    def _wrote(self) -> None:
        with self._lock:
            missing, self._missing = self._missing, 0
        if missing:
            logger.warning("The request log is written again; it lacks %d requests.", missing)


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

"""What is noted of a request while it goes its way; the log line, the trace and the metrics are made of it at its end.

Knows no HTTP beyond names and numbers, and no text of a request unless the server keeps texts.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from server.telemetry.texts import Texts

Outcome = Literal["completed", "rejected", "failed", "cancelled"]

SANE_ID = re.compile(rb"[\w.:/+=@-]{1,128}")
"""What a client may call its request: printable, on one line of a log, in one header."""
CLIENT_LEFT = 499
"""The status in the log where a client left before the response began; nobody was there to get one."""
PROBES = ("/health", "/live", "/metrics")
SEND_KEY = "twogear.send"
"""The key in a request's scope of the server's own `send`, without the layers that look at how a response starts."""
KEY = "twogear.record"


def new_request_id() -> str:
    """For a request whose client named none."""
    return f"req-{secrets.token_hex(12)}"


@dataclass(slots=True, kw_only=True)
class GenerationRecord:
    """What was generated for a request. Times on the clock of perf_counter, None for what did not happen.

    `adapter`: the name of the LoRA adapter, empty for none. `placed`: when the first choice had a place in the engine.
    `generated`: the tokens of each choice so far.
    """

    response_id: str
    mode: str
    arrived: float
    adapter: str = ""
    operation: Literal["chat", "text_completion"] = "chat"
    max_tokens: int = 0
    prompts: Sequence[int] = (0,)  # tokens of each choice's prompt
    placed: float | None = None
    first_token: float | None = None
    first_answer_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    draft_tokens: int = 0  # of dropped drafts, or by which the model chose
    trial_tokens: int = 0  # of answers that were tried along thoughts
    generated: list[int] = field(default_factory=lambda: [0])
    finish_reasons: Sequence[str | None] = ()
    reasoning_finish_reasons: Sequence[str | None] = ()
    outcome: Outcome = "failed"
    error: Exception | None = None

    @property
    def completion_tokens(self) -> int:
        """All that was generated."""
        return sum(self.generated)


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request, from its head to the end of its response.

    `arrived` on the clock of perf_counter, `started` in Unix nanoseconds. `path` without the query; `route` is the
    template that it fits. `trace` are the headers of the trace that it belongs to. `mode` and what follows it are known
    once the body is understood. `texts` is None unless the server keeps them. `on_end` is told of it once it has ended.
    """

    id: str = field(default_factory=new_request_id)
    method: str = ""
    path: str = ""
    arrived: float = field(default_factory=time.perf_counter)
    started: int = field(default_factory=time.time_ns)
    trace: Mapping[str, str] = field(default_factory=dict)
    client: str = ""
    route: str | None = None
    status: int | None = None
    mode: str | None = None
    model: str | None = None
    n: int | None = None
    streamed: bool | None = None
    error: Exception | None = None
    left: bool = False
    generation: GenerationRecord | None = None
    texts: Texts | None = None
    ended: float | None = None
    trace_id: str | None = None
    on_end: Callable[["RequestRecord"], None] | None = None
    workers: int = 0

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """The request ends with the last block of this: its response may still be made when the client was answered."""
        self.workers += 1
        try:
            yield
        finally:
            self.workers -= 1
            if self.workers == 0:
                self.ended = time.perf_counter()
                if self.on_end is not None:
                    self.on_end(self)

    @property
    def failure(self) -> Exception | None:
        """What the client was told of in place of an answer, or of the rest of it."""
        return self.error or (None if self.generation is None else self.generation.error)

    @property
    def is_probe(self) -> bool:
        """Whether a machine asks every few seconds: that is counted, but neither logged nor traced."""
        return self.path in PROBES

    @property
    def outcome(self) -> Outcome:
        """How it ended."""
        if self.generation is not None:
            return self.generation.outcome
        if self.left:
            return "cancelled"
        if self.status is None or self.status >= 500:
            return "rejected" if self.status == 503 else "failed"
        return "rejected" if self.status >= 400 else "completed"


def request_id(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The client's `X-Request-Id`, if it is sane, or a new one."""
    for name, value in headers:
        if name == b"x-request-id" and SANE_ID.fullmatch(value):
            return value.decode("ascii")
    return new_request_id()


def record_of(scope: MutableMapping[str, Any]) -> RequestRecord:
    """The record of the request with this ASGI scope."""
    record = scope[KEY]
    assert isinstance(record, RequestRecord)
    return record

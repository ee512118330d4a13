"""The outermost layer of the app: every request has an id, which every response tells, and a record to its end."""

from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ErrorShape
from server.telemetry.record import CLIENT_LEFT, KEY, RequestRecord, request_id
from server.telemetry.texts import Texts

Watcher = Callable[[RequestRecord], None]
"""Is told of a request that has ended; raises nothing."""
TRACE_HEADERS = (b"traceparent", b"tracestate")
MAX_PATH = 256
"""Characters of a path that are kept."""


class RequestLayer:
    """`app`, with a record in the scope of each request, which `watchers` get at its end.

    `shapes`: of the APIs whose clients look for the id under a name of their own. `keeps_texts`: whether texts go into
    the records.
    """

    def __init__(
        self, app: ASGIApp, watchers: Sequence[Watcher], shapes: Sequence[ErrorShape] = (), *, keeps_texts: bool = False
    ) -> None:
        self._app = app
        self._watchers = watchers
        self._shapes = [shape for shape in shapes if shape.id_header]
        self._keeps_texts = keeps_texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[KEY] = self._record(scope)
        id_headers = self._id_headers(scope, record.id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                _note_response(record, message["status"])
                message["headers"] = [*message.get("headers", ()), *id_headers]
            await send(message)

        with record.under_way():
            try:
                await self._app(scope, receive, send_with_id)
            finally:
                record.route = getattr(scope.get("route"), "path", None)

    def _tell(self, record: RequestRecord) -> None:
        for watcher in self._watchers:
            watcher(record)

    def _id_headers(self, scope: Scope, request_id: bytes) -> list[tuple[bytes, bytes]]:
        found = [(b"x-request-id", request_id)]
        if self._shapes:
            headers = {name.decode("latin-1") for name, _ in scope["headers"]}
            found += [
                (shape.id_header, request_id) for shape in self._shapes if shape.is_spoken(scope["path"], headers)
            ]
        return found

    def _record(self, scope: Scope) -> RequestRecord:
        headers = scope["headers"]
        return RequestRecord(
            id=request_id(headers),
            method=scope["method"],
            path=scope["path"][:MAX_PATH],
            trace={name.decode(): value.decode("latin-1") for name, value in headers if name in TRACE_HEADERS},
            texts=Texts() if self._keeps_texts else None,
            on_end=self._tell,
        )


def _note_response(record: RequestRecord, status: int) -> None:
    record.status = CLIENT_LEFT if record.outcome == "cancelled" else status

"""Reads the bodies of requests: type, size, and JSON to a typed body, away from the event loop where it is long.

Which fields a body has is the part of the API that reads it.
"""

import gc
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from server.core.request import Received
from server.core.serving import Serving
from server.errors import BodyTooLargeError, ContentTypeError
from server.offload import LONG, read_long
from server.telemetry.record import record_of

Body = TypeVar("Body")
JSON_TYPES = ("application/json", "application/x-www-form-urlencoded")


def serving_of(request: Request) -> Serving:
    """What `create_app` put there."""
    serving = request.app.state.serving
    assert isinstance(serving, Serving)
    return serving


async def read(request: Request, parse: Callable[[bytes], Body]) -> tuple[Body, Received]:
    """The body, and what is known of the request beside it; raises ApiError."""
    record = record_of(request.scope)
    _check_type(request.headers.get("content-type"))
    content = await _content(request, serving_of(request).settings.max_body_bytes)
    if record.texts is not None:
        record.texts.body = content.decode(errors="replace")
    body = await read_long(lambda: _parsed(parse, content), len(content))
    received = Received(size=len(content), arrived=record.arrived, record=record)
    record.client = received.client
    return body, received


def _parsed(parse: Callable[[bytes], Body], content: bytes) -> Body:
    """A long one without garbage collection, which a million new objects would keep busy: JSON has no cycles."""
    if len(content) < LONG:
        return parse(content)
    gc.disable()
    try:
        return parse(content)
    finally:
        gc.enable()


async def _content(request: Request, limit: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > len(str(limit)) or int(length) > limit):
        raise BodyTooLargeError(limit)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise BodyTooLargeError(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _check_type(content_type: str | None) -> None:
    """None is taken for JSON, as is what curl says of all that it sends; any other type is refused, as in vLLM."""
    if content_type is None:
        return
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in JSON_TYPES and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ContentTypeError(content_type)

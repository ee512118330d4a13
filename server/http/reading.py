"""Reads the bodies of requests: type, size, and JSON to a typed body, away from the event loop where it is long.

Which fields a body has is the part of the API that reads it.
"""

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from server.core.bytes_budget import BudgetSpent, BytesHeld
from server.core.request import Received
from server.core.serving import Serving
from server.errors import BadRequestError, BodyTooLargeError, ContentTypeError
from server.offload import LONG, READING, offload, without_gc
from server.telemetry.record import record_of

Body = TypeVar("Body")
PARTS = (b"[", b"{", b":")
MOST_PARTS = 200_000
SLICE = 1 << 17
PARSED_BYTES = 24
"""What a byte of JSON becomes at most, about: lists of empty objects."""
JSON_TYPES = ("application/json", "application/x-www-form-urlencoded")


def serving_of(request: Request) -> Serving:
    """What `create_app` put there."""
    serving = request.app.state.serving
    assert isinstance(serving, Serving)
    return serving


async def read(request: Request, parse: Callable[[bytes], Body]) -> tuple[Body, Received]:
    """The body, and what is known of the request beside it; raises ApiError."""
    record = record_of(request.scope)
    serving = serving_of(request)
    _check_type(request.headers.get("content-type"))
    coming, parsed = serving.bodies.holder(), serving.parsed.holder()
    try:
        content = await _content(request, serving.settings.max_body_bytes, coming)
        if record.texts is not None:
            record.texts.body = content.decode(errors="replace")
        if len(content) < LONG:
            return parse(content), Received(size=len(content), arrived=record.arrived, record=record)
        await parsed.take(PARSED_BYTES * len(content))
        body = await offload(READING, lambda: _parsed(parse, content))
    except BudgetSpent:
        raise serving.unavailable("too many long requests are coming in") from None
    finally:
        coming.release()
    return body, Received(size=len(content), arrived=record.arrived, held=parsed, record=record)


def _parsed(parse: Callable[[bytes], Body], content: bytes) -> Body:
    _check_parts(content)
    with without_gc():
        return parse(content)


def _check_parts(content: bytes) -> None:
    """Raises BadRequestError for more lists, objects and members than any use needs: each takes much, in one go."""
    if sum(map(content.count, PARTS)) > MOST_PARTS and _count_parts(content) > MOST_PARTS:  # the former counts text too
        raise BadRequestError(f"The body has more than {MOST_PARTS} lists, objects and members.")


def _count_parts(content: bytes) -> int:
    """Of JSON, outside of its strings. In slices, so that others run between them."""
    bare = content.replace(b"\\\\", b"").replace(b'\\"', b"")  # then each quote begins or ends a string
    count = is_inside = 0
    for start in range(0, len(bare), SLICE):
        pieces = bare[start : start + SLICE].split(b'"')
        count += sum(map(b"".join(pieces[is_inside::2]).count, PARTS))
        is_inside = (is_inside + len(pieces) - 1) % 2
    return count


async def _content(request: Request, limit: int, coming: BytesHeld) -> bytes:
    """A short body does not wait for long ones."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > len(str(limit)) or int(length) > limit):
        raise BodyTooLargeError(limit)
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise BodyTooLargeError(limit)
        if size > LONG:
            await coming.take(size - coming.size)
        chunks.append(chunk)
    return b"".join(chunks)


def _check_type(content_type: str | None) -> None:
    """None is taken for JSON, as is what curl says of all that it sends; any other type is refused, as in vLLM."""
    if content_type is None:
        return
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in JSON_TYPES and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ContentTypeError(content_type)

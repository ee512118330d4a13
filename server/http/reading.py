"""Reads the bodies of requests: type, size, and JSON to a typed body, away from the event loop where it is long.

Which fields a body has is the part of the API that reads it.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec
from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import Scope

from server.access.quota import ANYONE, Caller
from server.core.bytes_budget import BudgetSpent, BytesHeld
from server.core.request import Received
from server.core.serving import Serving
from server.errors import BadRequestError, BodyTooLargeError, ContentEncodingError, ContentTypeError, UnavailableError
from server.offload import LONG, READING, offload_long
from server.telemetry.record import record_of

Body = TypeVar("Body")
CALLER = "twogear.caller"
"""Where the scope of a request has its Caller."""
JSON_TYPE = "application/json"
CURLS_TYPES = (None, "application/x-www-form-urlencoded")
BROWSERS_HEADERS = ("origin", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest")
PARTS = (b"[", b"{", b":")
MOST_PARTS = 200_000
SLICE = 1 << 17
PARSED_BYTES = 24
"""What a byte of JSON becomes at most, about: lists of empty objects."""


def serving_of(request: Request) -> Serving:
    """What `create_app` put there."""
    serving = request.app.state.serving
    assert isinstance(serving, Serving)
    return serving


def caller_of(scope: Scope) -> Caller:
    """Who sent the request, as `server.access.gate` found out."""
    caller = scope.get(CALLER, ANYONE)
    assert isinstance(caller, Caller)
    return caller


async def read(request: Request, parse: Callable[[bytes], Body]) -> tuple[Body, Received]:
    """The body, and what is known of the request beside it; raises ApiError."""
    record = record_of(request.scope)
    serving, caller = serving_of(request), caller_of(request.scope)
    _check_type(request.headers)
    _check_encoding(request.headers)
    coming, parsed = serving.bodies.holder(), serving.parsed.holder()
    try:
        content = await _content(request, serving.settings.max_body_bytes, coming)
        if record.texts is not None:
            record.texts.body = content.decode(errors="replace")
        if content and "content-type" not in request.headers and _is_of_browser(request.headers):
            raise ContentTypeError("")
        received = Received(size=len(content), client=caller.name, caller=caller, arrived=record.arrived, record=record)
        if len(content) < LONG:
            return parse(content), received
        await parsed.take(PARSED_BYTES * len(content))
        body = await offload_long(READING, lambda: _parsed(parse, content))
    except BudgetSpent:
        raise _too_many(serving) from None
    finally:
        coming.release()
    return body, msgspec.structs.replace(received, held=parsed)


async def hold_more(received: Received, size: int, serving: Serving) -> Received:
    """The same with memory for `size` bytes of JSON that the server kept for the client; raises UnavailableError."""
    if size < LONG:
        return received
    held = received.held or serving.parsed.holder()
    try:
        await held.take(PARSED_BYTES * size)
    except BudgetSpent:
        raise _too_many(serving) from None
    return msgspec.structs.replace(received, held=held)


def _too_many(serving: Serving) -> UnavailableError:
    return serving.unavailable("too many long requests are coming in")


def _parsed(parse: Callable[[bytes], Body], content: bytes) -> Body:
    _check_parts(content)
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


def _check_type(headers: Headers) -> None:
    """None is taken for JSON, as is what curl says of all that it sends; any other type is refused, as in vLLM.

    From a browser only what says that it is JSON, if there is a body at all: a page can send anything else anywhere,
    without being asked whether it may.
    """
    content_type = headers.get("content-type")
    kind = None if content_type is None else content_type.partition(";")[0].strip().lower()
    if kind == JSON_TYPE or (kind is not None and kind.startswith("application/") and kind.endswith("+json")):
        return
    if kind not in CURLS_TYPES or (kind is not None and _is_of_browser(headers)):
        raise ContentTypeError(content_type or "")


def _check_encoding(headers: Headers) -> None:
    """A short body could hold more than the server reads."""
    encoding = headers.get("content-encoding", "")
    if encoding.strip().lower() not in ("", "identity"):
        raise ContentEncodingError(encoding)


def _is_of_browser(headers: Headers) -> bool:
    return any(name in headers for name in BROWSERS_HEADERS)

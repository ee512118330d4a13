"""Reads the bodies of requests: type, size, and JSON to a typed body, away from the event loop where it is long.

Which fields a body has is the part of the API that reads it.
"""

import gc
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import Scope

from server.access.quota import ANYONE, Caller
from server.core.request import Received
from server.core.serving import Serving
from server.errors import BodyTooLargeError, ContentTypeError
from server.offload import LONG, read_long

Body = TypeVar("Body")
CALLER = "twogear.caller"
"""Where the scope of a request has its Caller."""
JSON_TYPE = "application/json"
CURLS_TYPES = (None, "application/x-www-form-urlencoded")
BROWSERS_HEADERS = ("origin", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest")


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
    arrived = perf_counter()
    _check_type(request.headers)
    content = await _content(request, serving_of(request).settings.max_body_bytes)
    if content and "content-type" not in request.headers and _is_of_browser(request.headers):
        raise ContentTypeError("")
    body = await read_long(lambda: _parsed(parse, content), len(content))
    caller = caller_of(request.scope)
    return body, Received(size=len(content), client=caller.name, caller=caller, arrived=arrived)


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


def _is_of_browser(headers: Headers) -> bool:
    return any(name in headers for name in BROWSERS_HEADERS)

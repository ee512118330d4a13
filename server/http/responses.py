"""JSON responses, and the handlers that give every failure the shape of the API that it happened in."""

import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TypeVar

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, ErrorShape
from server.telemetry.record import CLIENT_LEFT, record_of

logger = logging.getLogger(__name__)

T = TypeVar("T")
_PART = 32_768  # items that are encoded in one go

Encoded = orjson.Fragment
"""JSON already."""


def encoded(body: object) -> Encoded:
    """What `json_response` has no more work with, for large ones."""
    return Encoded(orjson.dumps(body))


def encoded_list(items: Sequence[T], told: Callable[[T], object] | None = None) -> Encoded:
    """The same of a long list, or of what `told` makes of each of its items: in parts, for the encoder lets no other
    thread run.
    """
    parts = (items[start : start + _PART] for start in range(0, len(items), _PART))
    texts = (orjson.dumps(part if told is None else list(map(told, part)))[1:-1] for part in parts)
    return Encoded(b"[%b]" % b",".join(texts))


class HeadAsGet:
    """Answers HEAD as GET, without the body: `wget --spider` and health checks ask so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_head)


def json_response(body: object, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    """A JSON response, serialised once."""
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def error_response(error: ApiError, scope: Scope) -> Response:
    """The whole HTTP response that tells the request of `scope` of `error`, in its API's shape."""
    shapes: Sequence[ErrorShape] = scope["app"].state.error_shapes
    headers_in, path = Headers(scope=scope), route_path(scope)
    own = next((shape for shape in shapes if shape.is_spoken(path, headers_in)), None)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(error.body() if own is None else own.body(error, record_of(scope).id), error.status, headers)


def install_error_handlers(app: FastAPI, shapes: Sequence[ErrorShape]) -> None:
    """Gives all errors of `app` OpenAI's shape or one of `shapes`: our own, the router's, and unforeseen ones."""
    app.state.error_shapes = shapes
    app.add_exception_handler(ApiError, _own)
    app.add_exception_handler(HTTPException, _of_router)
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.add_exception_handler(Exception, _unforeseen)


def route_path(scope: Scope) -> str:
    """The path of a request as the routes know it: without the prefix under which a proxy serves the app."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path


async def _own(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    record_of(request.scope).error = error
    return error_response(error, request.scope)


async def _client_left(request: Request, _error: Exception) -> Response:
    """The client is gone before its body was read: nobody gets this response."""
    record_of(request.scope).left = True
    return Response(status_code=CLIENT_LEFT)


async def _of_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"There is no {request.method} {request.url.path} here. There are {_listed(request)}."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not take {request.method}."
    else:
        message = str(error.detail)
    told = ApiError(message)
    told.status, told.kind = HTTPStatus(error.status_code), "invalid_request_error"
    response = error_response(told, request.scope)
    response.headers.update(error.headers or {})
    return response


def _listed(request: Request) -> str:
    """The paths of the APIs, with their methods."""
    routes = [route for route in request.app.routes if isinstance(route, APIRoute)]
    return ", ".join(f"{' '.join(sorted(route.methods))} {route.path.replace(':path', '')}" for route in routes)


async def _unforeseen(request: Request, error: Exception) -> Response:
    record = record_of(request.scope)
    record.error = error
    logger.error("request %s failed unexpectedly", record.id, exc_info=error)
    return error_response(ApiError("The server failed on this request; its log says why."), request.scope)

"""JSON responses, and the handlers that give every failure the shape of the API that it happened in."""

import logging
from collections.abc import Sequence
from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from server.errors import ApiError, ErrorShape

logger = logging.getLogger(__name__)


Encoded = orjson.Fragment
"""JSON already."""


def encoded(body: object) -> Encoded:
    """What `json_response` has no more work with, for large ones."""
    return Encoded(orjson.dumps(body))


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
    return json_response(error.body() if own is None else own.body(error), error.status, headers)


def install_error_handlers(app: FastAPI, shapes: Sequence[ErrorShape]) -> None:
    """Gives all errors of `app` OpenAI's shape or one of `shapes`: our own, the router's, and unforeseen ones."""
    app.state.error_shapes = shapes
    app.add_exception_handler(ApiError, _own)
    app.add_exception_handler(HTTPException, _of_router)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unforeseen)


def route_path(scope: Scope) -> str:
    """The path of a request as the routes know it: without the prefix under which a proxy serves the app."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path


async def _own(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.scope)


async def _of_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"There is no {request.method} {request.url.path} here; /docs lists what there is."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not take {request.method}."
    else:
        message = str(error.detail)
    told = ApiError(message)
    told.status, told.kind = HTTPStatus(error.status_code), "invalid_request_error"
    response = error_response(told, request.scope)
    response.headers.update(error.headers or {})
    return response


async def _gone(_request: Request, _error: Exception) -> Response:
    """The client left while it sent its request, which is its own affair: nobody gets this response."""
    return Response()


async def _unforeseen(request: Request, error: Exception) -> Response:
    logger.error("a request failed unexpectedly", exc_info=error)
    return error_response(ApiError("The server failed on this request; its log says why."), request.scope)

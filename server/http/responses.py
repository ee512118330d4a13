"""JSON responses, and the handlers that give every failure OpenAI's shape."""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from re import Pattern

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from server.errors import ApiError, ErrorShape, RouteError

logger = logging.getLogger(__name__)


def json_response(body: object, status: int = HTTPStatus.OK, headers: dict[str, str] | None = None) -> Response:
    """A JSON response, serialised once."""
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def error_response(error: ApiError, scope: Scope) -> Response:
    """The whole HTTP response that tells of `error`, in the shape of the API that the request is for."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return json_response(_shape_of(scope)(error), error.status, headers)


def install_error_handlers(app: FastAPI, shapes: Sequence[tuple[Pattern[str], ErrorShape]] = ()) -> None:
    """Gives every error of `app` its shape: our own, the router's (404, 405) and unforeseen ones.

    `shapes` are those of paths whose API has one of its own; all others have OpenAI's.
    """
    app.state.error_shapes = shapes
    app.add_exception_handler(ApiError, _own)
    app.add_exception_handler(HTTPException, _of_router)
    app.add_exception_handler(Exception, _unforeseen)


def route_path(scope: Scope) -> str:
    """The path of a request as the routes know it: without the prefix under which a proxy serves the app."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and f"{path}/".startswith(f"{root}/") else path


def _shape_of(scope: Scope) -> ErrorShape:
    path = route_path(scope)
    shapes: Sequence[tuple[Pattern[str], ErrorShape]] = scope["app"].state.error_shapes
    return next((shape for pattern, shape in shapes if pattern.match(path)), ApiError.body)


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
    response = error_response(RouteError(message, error.status_code), request.scope)
    response.headers.update(error.headers or {})
    return response


async def _unforeseen(request: Request, error: Exception) -> Response:
    logger.error("a request failed unexpectedly", exc_info=error)
    return error_response(ApiError("The server failed on this request; its log says why."), request.scope)

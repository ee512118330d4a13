"""JSON responses, and the handlers that give every failure OpenAI's shape."""

import logging
from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, error_body

logger = logging.getLogger(__name__)


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


def error_response(error: ApiError) -> Response:
    """The whole HTTP response that tells of `error`."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return json_response(error.body(), error.status, headers)


def install_error_handlers(app: FastAPI) -> None:
    """Gives every error of `app` OpenAI's shape: our own, the router's (404, 405) and unforeseen ones."""
    app.add_exception_handler(ApiError, _own)
    app.add_exception_handler(HTTPException, _of_router)
    app.add_exception_handler(Exception, _unforeseen)


async def _own(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _of_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"There is no {request.method} {request.url.path} here. There are {_listed(request)}."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not take {request.method}."
    else:
        message = str(error.detail)
    headers = dict(error.headers) if error.headers else {}
    return json_response(error_body(message, "invalid_request_error"), error.status_code, headers)


def _listed(request: Request) -> str:
    """The paths of the APIs, with their methods."""
    routes = [route for route in request.app.routes if isinstance(route, APIRoute)]
    return ", ".join(f"{' '.join(sorted(route.methods))} {route.path.replace(':path', '')}" for route in routes)


async def _unforeseen(_request: Request, error: Exception) -> Response:
    logger.error("a request failed unexpectedly", exc_info=error)
    message = "The server failed on this request; its log says why."
    return json_response(error_body(message, "server_error"), HTTPStatus.INTERNAL_SERVER_ERROR)

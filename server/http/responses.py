"""JSON responses, and the handlers that give every failure OpenAI's shape."""

import logging
from http import HTTPStatus

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from server.errors import ApiError, error_body
from server.telemetry.record import CLIENT_LEFT, record_of

logger = logging.getLogger(__name__)


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
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.add_exception_handler(Exception, _unforeseen)


async def _own(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    record_of(request.scope).error = error
    return error_response(error)


async def _client_left(request: Request, _error: Exception) -> Response:
    """The client is gone before its body was read: nobody gets this response."""
    record_of(request.scope).left = True
    return Response(status_code=CLIENT_LEFT)


async def _of_router(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        message = f"There is no {request.method} {request.url.path} here; /docs lists what there is."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"{request.url.path} does not take {request.method}."
    else:
        message = str(error.detail)
    headers = dict(error.headers) if error.headers else {}
    return json_response(error_body(message, "invalid_request_error"), error.status_code, headers)


async def _unforeseen(request: Request, error: Exception) -> Response:
    record = record_of(request.scope)
    record.error = error
    logger.error("request %s failed unexpectedly", record.id, exc_info=error)
    message = "The server failed on this request; its log says why."
    return json_response(error_body(message, "server_error"), HTTPStatus.INTERNAL_SERVER_ERROR)

"""Errors in Anthropic's shape, with Anthropic's types."""

from http import HTTPStatus

from server.api.messages.body import NO_THREADS
from server.errors import ApiError, ContextLengthError, ErrorShape, JsonObject

TYPES = {  # by status, as in Anthropic's documentation of errors; any other is the client's fault below 500, else ours
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.PAYMENT_REQUIRED: "billing_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout_error",
}


def anthropic_error(error: ApiError, request_id: str) -> JsonObject:
    """Anthropic's error object. It has no place for the field at fault, which the message names."""
    fault = "invalid_request_error" if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
    told: JsonObject = {"type": TYPES.get(error.status, fault), "message": _message(error)}
    if error.code == NO_THREADS:
        told["details"] = {"error_code": error.code, "unsupported": [error.param]}
    return {"type": "error", "error": told, "request_id": request_id}


def _message(error: ApiError) -> str:
    if isinstance(error, ContextLengthError):
        # In Anthropic's words: Claude Code, for one, shortens the conversation where it reads them.
        return f"prompt is too long: {error.prompt} tokens > {error.context} maximum"
    if error.param is None or error.param in error.message:
        return error.message
    return f"{error.param}: {error.message}"


ERRORS = ErrorShape(prefix="/v1/messages", header="anthropic-version", body=anthropic_error, id_header=b"request-id")

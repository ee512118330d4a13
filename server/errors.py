"""The errors that clients see, in OpenAI's shape or in an API's own; `server.http.responses` sends them.

ApiError
├── BadRequestError        400, `param` names the field
│   ├── ContextLengthError 400, code context_length_exceeded
│   └── QuarantinedError   400, code request_quarantined
├── AuthenticationError    401
├── ForbiddenError         403
├── UnknownModelError      404
├── UnknownRequestError    404
├── UnknownResponseError   404
├── SlowReaderError        408
├── BodyTooLargeError      413
├── ContentTypeError       415
├── ContentEncodingError   415
├── RateLimitError         429, with Retry-After
└── UnavailableError       503, with Retry-After
    └── OverloadedError    503, code overloaded: more is asked than the server takes on
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from http import HTTPStatus

JsonObject = dict[str, object]


CONTEXT_EXCEEDED = "context_length_exceeded"
"""The code of what does not fit into the model's context."""


class ApiError(Exception):
    """A failure that is told to the client; `retry_after` in seconds."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    kind = "server_error"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> JsonObject:
        """The JSON that the client gets, as a response or as an event of a stream."""
        return error_body(self.message, self.kind, self.param, self.code)


class BadRequestError(ApiError):
    """The request itself is wrong."""

    status = HTTPStatus.BAD_REQUEST
    kind = "invalid_request_error"


class ContextLengthError(BadRequestError):
    """Prompt and token limit are longer than the model's context. `is_least`: the prompt was not counted out."""

    def __init__(self, context: int, prompt: int, completion: int, param: str, *, is_least: bool = False) -> None:
        least = "at least " if is_least else ""
        self.context = context
        self.prompt = prompt
        super().__init__(
            f"This model's maximum context length is {context} tokens. However, you requested {least}"
            f"{prompt + completion} tokens ({least}{prompt} in the {param}, {completion} in the completion). "
            "Please shorten either.",
            param=param,
            code=CONTEXT_EXCEEDED,
        )


class AuthenticationError(ApiError):
    """The request brings no API key, or none that the server knows."""

    status = HTTPStatus.UNAUTHORIZED
    kind = "invalid_request_error"

    def __init__(self, *, brought_one: bool) -> None:
        super().__init__(
            "The API key is not one of this server's."
            if brought_one
            else "This server needs an API key: send the header Authorization: Bearer KEY, or x-api-key: KEY.",
            code="invalid_api_key",
        )


class ForbiddenError(ApiError):
    """The API key, or the web page, that a request comes from may not do this."""

    status = HTTPStatus.FORBIDDEN
    kind = "invalid_request_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, code="insufficient_permissions")


class RateLimitError(ApiError):
    """The API key has used up one of its limits.

    `kind` says whether of requests or of tokens.
    """

    status = HTTPStatus.TOO_MANY_REQUESTS
    kind = "requests"

    def __init__(self, message: str, *, kind: str, retry_after: int) -> None:
        super().__init__(message, code="rate_limit_exceeded", retry_after=retry_after)
        self.kind = kind


class QuarantinedError(BadRequestError):
    """The engine fails on this request, so that it is not run again for a while."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="request_quarantined")


class UnknownModelError(ApiError):
    """The request names a model that is not served here."""

    status = HTTPStatus.NOT_FOUND
    kind = "invalid_request_error"

    def __init__(self, name: str, served: str, param: str = "model", *, adapters: Sequence[str] = ()) -> None:
        those = "".join(f", {adapter!r}" for adapter in adapters)
        super().__init__(
            f"The model {name!r} does not exist here; this server has {served!r}{those}.",
            param=param,
            code="model_not_found",
        )


class UnknownRequestError(ApiError):
    """A request is named that does not run here."""

    status = HTTPStatus.NOT_FOUND
    kind = "invalid_request_error"

    def __init__(self, name: str) -> None:
        super().__init__(f"No completion {name[:64]!r} is running here.", param="id", code="request_not_found")


class SlowReaderError(ApiError):
    """The client reads its stream so slowly that too much waits for it."""

    status = HTTPStatus.REQUEST_TIMEOUT
    kind = "invalid_request_error"

    def __init__(self) -> None:
        super().__init__("This stream is read too slowly for its log-probabilities. Ask for fewer, or read faster.")


class UnknownResponseError(ApiError):
    """A stored response is asked for that is not there, or not any more."""

    status = HTTPStatus.NOT_FOUND
    kind = "invalid_request_error"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="response_id", code="response_not_found")


class BodyTooLargeError(ApiError):
    """The body has more bytes than the server reads."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    kind = "invalid_request_error"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The request body is larger than {limit} bytes.", code="request_too_large")


class ContentTypeError(ApiError):
    """The body is not said to be JSON."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    kind = "invalid_request_error"

    def __init__(self, content_type: str) -> None:
        super().__init__(f"The Content-Type must be application/json, not {content_type[:64]!r}.")


class ContentEncodingError(ApiError):
    """The body is compressed."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    kind = "invalid_request_error"

    def __init__(self, encoding: str) -> None:
        super().__init__(f"The body must come as it is: Content-Encoding {encoding[:64]!r} is not taken.")


class UnavailableError(ApiError):
    """The server cannot take a request now: the engine is loading or lost, or the server is going down."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    kind = "service_unavailable_error"


class OverloadedError(UnavailableError):
    """The server takes no more now: too much waits, or is in work. `pause` in seconds."""

    def __init__(self, why: str, pause: int) -> None:
        super().__init__(
            f"The server is overloaded: {why}. Try again in {pause} s.", code="overloaded", retry_after=pause
        )


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> JsonObject:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class ErrorShape:
    """How an API tells errors that does not tell them as OpenAI does. Its requests are those whose path begins with
    `prefix`, and those that have `header`, by which its clients say on any path whose API they speak.
    """

    prefix: str
    header: str
    body: Callable[[ApiError, str], JsonObject]
    """Of an error and the id of the request that it ends."""
    id_header: bytes = b""
    """Under which its clients look for the id of a request too, beside `x-request-id`."""

    def is_spoken(self, path: str, headers: Container[str]) -> bool:
        """Whether a request of `path` that has `headers`, in lower case, is one of this API's."""
        return path.startswith(self.prefix) or self.header in headers

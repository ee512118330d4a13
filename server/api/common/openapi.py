"""One API as the app takes it in, and what the OpenAPI document says: bodies, responses, streams, and errors.

The routes read their bodies and make their responses themselves, so that FastAPI has to be told what both look like.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.access.keys import RouteGroup
from server.api.common.schema import ErrorResponse
from server.errors import ErrorShape

SCHEMAS = "#/components/schemas/"
SERVED_MODES = "x-served-modes"
"""Marks a string of a body that is the name of a mode: the document of a running server lists those that it has."""
METHODS = ("get", "post", "delete")
RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait", "required": True}}
_ERRORS = {
    400: "A field is wrong, and `param` names it, or the body is no JSON object",
    401: "There is no API key, or none that the server knows",
    403: "The API key may not do this, or the request comes from a foreign web page",
    404: "There is no such model or request",
    413: "The body is larger than the server reads",
    415: "The body is not said to be JSON",
    429: "The API key has used what it may use",
    503: "The engine is loading or lost, or the server shuts down",
}
Responses = dict[int | str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Api:
    """One API: its routes, and the models of the bodies and responses that they refer to in the OpenAPI document.

    `errors`: how it tells errors, where that is not OpenAI's way. `access`: which of its paths need no key (`open`), or
    a key that may use more than the models.
    """

    router: APIRouter
    bodies: tuple[type[BaseModel], ...] = ()
    answers: tuple[type[BaseModel], ...]
    errors: ErrorShape | None = None
    access: Mapping[str, RouteGroup | Literal["open"]] = field(default_factory=dict)


def body_of(*kinds: type[BaseModel]) -> dict[str, Any]:
    """What a route says of the body that it reads itself: it is of one of `kinds`."""
    return {"requestBody": {"required": True, "content": {"application/json": _of(*kinds)}}}


def answers_of(
    kind: type[BaseModel],
    *errors: int,
    event: type[BaseModel] | None = None,
    other: type[BaseModel] | None = None,
    problem: type[BaseModel] = ErrorResponse,
    needs_key: bool = True,
) -> Responses:
    """What a route says of its responses: `kind`, or for some clients `other`, or with `stream` a series of `event`;
    errors with these statuses. Those of keys are added: 401 and 403, and 429 where the engine has to do with it.
    """
    if needs_key:
        errors = tuple(sorted({*errors, 401, 403, *([429] if 503 in errors else [])}))
    content = {"application/json": _of(kind) if other is None else _of(kind, other)}
    if event is not None:
        # Without a schema of its own: readers differ in whether that would be the stream's or that of an event.
        content["text/event-stream"] = {"x-event": _of(event)["schema"]}
    return {200: {"description": str(kind.__doc__), "content": content}, **errors_of(*errors, problem=problem)}


def errors_of(*errors: int, problem: type[BaseModel] = ErrorResponse) -> Responses:
    """What a route says of its errors."""
    responses: Responses = {}
    for status in errors:
        responses[status] = {"description": _ERRORS[status], "content": {"application/json": _of(problem)}}
        if status in (429, 503):
            responses[status]["headers"] = RETRY_AFTER
    return responses


def text_answer(media_type: str) -> Responses:
    """The same for a route that answers with text."""
    return {200: {"description": "Text", "content": {media_type: {"schema": {"type": "string"}}}}}


def install_openapi(app: FastAPI, apis: Sequence[Api], modes: Callable[[], Sequence[str]]) -> None:
    """Adds the schemas that bodies and responses refer to; `modes` gives the names of those that are served now."""
    kinds: list[type[BaseModel]] = [ErrorResponse]
    kinds += [kind for api in apis for kind in (*api.bodies, *api.answers)]
    written_for: Sequence[str] = ()

    def document() -> dict[str, Any]:
        nonlocal written_for
        served = modes()
        if app.openapi_schema is None or served != written_for:
            written_for = served
            spec = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            spec["components"] = {"schemas": _with_modes(_schemas(kinds), served)}
            for operations in spec["paths"].values():
                for method in METHODS:  # FastAPI's own errors: our routes read and check by themselves
                    operations.get(method, {"responses": {}})["responses"].pop("422", None)
            app.openapi_schema = spec
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign] # FastAPI documents this way to extend the document


def _schemas(kinds: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """By name. All at once, so that parts of the same name get other names; `kinds` themselves must have their own."""
    _, schemas = models_json_schema([(kind, "validation") for kind in kinds], ref_template=SCHEMAS + "{model}")
    definitions: dict[str, Any] = schemas["$defs"]
    return definitions


def _with_modes(schema: Any, modes: Sequence[str]) -> Any:
    """The same with the names of the modes wherever one of them is meant."""
    if isinstance(schema, list):
        return [_with_modes(part, modes) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _with_modes(part, modes) for key, part in schema.items() if key != SERVED_MODES}
    return {**made, "enum": list(modes)} if SERVED_MODES in schema else made


def _of(*kinds: type[BaseModel]) -> dict[str, Any]:
    references = [{"$ref": SCHEMAS + kind.__name__} for kind in kinds]
    return {"schema": references[0] if len(references) == 1 else {"anyOf": references}}

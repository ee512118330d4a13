"""What the OpenAPI document says of bodies that the routes read themselves, and of errors."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.bodies.chat import ChatRequest
from server.bodies.completion import CompletionRequest
from server.bodies.control import ControlRequest
from server.bodies.fields import Fields
from server.bodies.tokens import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest

SCHEMAS = "#/components/schemas/"
BODIES = (ChatRequest, CompletionRequest, TokenizeTextRequest, TokenizeChatRequest, DetokenizeRequest, ControlRequest)
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def _json(*schemas: str) -> dict[str, Any]:
    references = [{"$ref": SCHEMAS + schema} for schema in schemas]
    return {"application/json": {"schema": references[0] if len(references) == 1 else {"anyOf": references}}}


def body_of(*kinds: type[Fields]) -> dict[str, Any]:
    """What a route says of the body that it reads itself: it is of one of `kinds`."""
    return {"requestBody": {"required": True, "content": _json(*(kind.__name__ for kind in kinds))}}


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be served as it is", "content": _json("Error")},
    "503": {"description": "Not now; see Retry-After", "content": _json("Error")},
}


def install_openapi(app: FastAPI) -> None:
    """Adds the schemas that `body_of` and ERRORS refer to."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            spec = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            schemas = spec.setdefault("components", {}).setdefault("schemas", {})
            schemas["Error"] = _ERROR
            for kind in BODIES:
                body = kind.model_json_schema(ref_template=SCHEMAS + "{model}")
                schemas.update({**body.pop("$defs", {}), kind.__name__: body})
            app.openapi_schema = spec
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign] # FastAPI documents this way to extend the document

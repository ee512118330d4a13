"""What the OpenAPI document says of bodies that the routes read themselves, and of errors."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from server.bodies.chat import ChatRequest

SCHEMAS = "#/components/schemas/"
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


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": SCHEMAS + schema}}}


CHAT_BODY: dict[str, Any] = {"requestBody": {"required": True, "content": _json(ChatRequest.__name__)}}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request cannot be served as it is", "content": _json("Error")},
    "503": {"description": "Not now; see Retry-After", "content": _json("Error")},
}


def install_openapi(app: FastAPI) -> None:
    """Adds the schemas that CHAT_BODY and ERRORS refer to."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            spec = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            body = ChatRequest.model_json_schema(ref_template=SCHEMAS + "{model}")
            schemas = spec.setdefault("components", {}).setdefault("schemas", {})
            schemas.update({"Error": _ERROR, **body.pop("$defs", {}), ChatRequest.__name__: body})
            app.openapi_schema = spec
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign] # FastAPI documents this way to extend the document

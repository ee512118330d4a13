"""What the responses about the server itself look like, for the OpenAPI document and docs/api.md."""

from typing import Annotated, Literal

from pydantic import Field

from server.api.common.schema import Answer, Count, ErrorResponse


class Model(Answer):
    """A listed model."""

    id: str
    """The name to ask for."""
    object: Literal["model"]
    """The kind of the object."""
    created: int
    """When the server was started, in Unix time."""
    root: str
    """The model's own name, of which the others are aliases."""
    owned_by: Literal["twogear"]
    """Who serves it."""
    max_model_len: Count | None
    """The model's context in tokens; null until it is loaded."""
    reasoning_mode: str
    """The mode of requests for this name that name no other."""
    kind: Literal["direct", "thinking"]
    """Whether that mode answers at once or thinks first."""


class Models(Answer):
    """All of them."""

    object: Literal["list"]
    """The kind of the object."""
    data: list[Model]
    """The model under its own name, then under one alias for each mode."""


class Healthy(Answer):
    """The server takes requests."""

    status: Literal["ok"]
    """That it does."""


class Unhealthy(ErrorResponse):
    """The server does not take requests now."""

    status: Literal["loading", "ready", "lost", "closed", "draining"]
    """Why."""
    progress: Annotated[float, Field(ge=0, le=1)]
    """How far loading has come."""
    detail: str
    """The same in words."""


class Versions(Answer):
    """What runs here."""

    version: str
    """Of Twogear."""
    engine: str | None
    """Of vLLM; null until the engine is up."""

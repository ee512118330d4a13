"""What the responses about the server itself look like, for the OpenAPI document and docs/api/service.md."""

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
    """The name of the model or of the adapter, of which the others are aliases."""
    parent: str | None
    """Of a LoRA adapter: the model that it is for.

    Differs: vLLM's `root` of an adapter is its path on the server.
    """
    owned_by: Literal["twogear"]
    """Who serves it."""
    max_model_len: Count | None
    """The model's context in tokens; null until it is loaded."""
    weights: str
    """In how many bits the weights are held: bf16, int8, int4; gguf: as the GGUF file has them; else as the checkpoint
    is quantized, such as gptq-int4."""
    reasoning_mode: str
    """The mode of requests for this name that name no other."""
    kind: Literal["direct", "thinking", "auto"]
    """Whether that mode answers at once, thinks first, or decides which."""


class Models(Answer):
    """All of them."""

    object: Literal["list"]
    """The kind of the object."""
    data: list[Model]
    """The model under its own name, then under one alias for each mode; then each LoRA adapter, in the same way."""


class AnthropicModel(Answer):
    """A listed model, where `anthropic-version` was sent."""

    type: Literal["model"]
    """The kind of the object."""
    id: str
    """The name to ask for."""
    display_name: str
    """The same."""
    created_at: str
    """When the server was started, as in RFC 3339."""
    max_input_tokens: Count | None
    """The model's context in tokens; null until it is loaded."""
    max_tokens: Count | None
    """The most that `max_tokens` may ask for; null until it is loaded."""
    lifecycle: Literal["active"]
    """That it can be asked for."""
    capabilities: None
    """Not told."""


class AnthropicModels(Answer):
    """All of them, where `anthropic-version` was sent."""

    data: list[AnthropicModel]
    """The model under its own name, then under one alias for each mode."""
    has_more: Literal[False]
    """There is one page."""
    first_id: str
    """The name of the first."""
    last_id: str
    """The name of the last."""


class Healthy(Answer):
    """The server takes requests."""

    status: Literal["ok"]
    """That it does."""


class Alive(Answer):
    """The server's process is up and answers, whatever its engine does."""

    status: Literal["alive"]
    """That it is."""


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

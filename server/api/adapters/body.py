"""The bodies of `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, as vLLM has them."""

from typing import Annotated

from pydantic import Field

from server.api.common.fields import Fields, checked, read_object

Name = Annotated[str, Field(min_length=1, max_length=256)]


class LoadAdapterRequest(Fields):
    """An adapter to serve."""

    lora_name: Name
    """The model name under which it is served."""
    lora_path: Annotated[str, Field(min_length=1)]
    """Its folder on the server's machine, or a hub id."""
    load_inplace: bool | None = None
    """True: an adapter of this name is replaced; what runs with that goes on with it."""


class UnloadAdapterRequest(Fields):
    """An adapter to serve no more."""

    lora_name: Name
    """The model name under which it is served."""


def read_load_request(content: bytes) -> LoadAdapterRequest:
    """Parses and checks a body; raises BadRequestError."""
    return checked(LoadAdapterRequest, read_object(content, LoadAdapterRequest.model_fields))


def read_unload_request(content: bytes) -> UnloadAdapterRequest:
    """Parses and checks a body; raises BadRequestError."""
    return checked(UnloadAdapterRequest, read_object(content, UnloadAdapterRequest.model_fields))

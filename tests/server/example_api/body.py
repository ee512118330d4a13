"""The body of `POST /ask`."""

from typing import Annotated

from pydantic import Field

from server.api.common.fields import Fields, checked, read_object
from server.api.common.sampling import TokenCount
from server.api.common.thinking import ModeName


class AskRequest(Fields):
    """A question."""

    question: str
    """What is asked."""
    instructions: str | None = None
    """How to answer."""
    gear: ModeName | None = None
    """The mode."""
    think_at_most: TokenCount | None = None
    """The most tokens of thinking."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """The most tokens to generate."""
    heat: Annotated[float, Field(ge=0, le=2)] | None = None
    """The temperature."""
    stream: bool | None = None
    """True: the response comes as server-sent events."""


def read_ask_request(content: bytes) -> AskRequest:
    """Parses and checks a body; raises BadRequestError."""
    return checked(AskRequest, read_object(content, AskRequest.model_fields))

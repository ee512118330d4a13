"""The body of `POST …/control`, of a chat completion or a response that runs."""

from typing import Literal

from server.api.common.fields import Fields, checked, read_object


class ControlRequest(Fields):
    """What a running request shall do."""

    action: Literal["end_reasoning", "reasoning_end"]
    """Closes the thinking, as a spent budget would; the answer follows. The second name is llama.cpp's."""


class NamedControlRequest(ControlRequest):
    """The same, as llama.cpp takes it."""

    id: str
    """The completion."""


def read_control_request(content: bytes) -> ControlRequest:
    """Parses and checks a body; raises BadRequestError."""
    return checked(ControlRequest, read_object(content))


def read_named_control_request(content: bytes) -> NamedControlRequest:
    """Parses and checks a body; raises BadRequestError."""
    return checked(NamedControlRequest, read_object(content))

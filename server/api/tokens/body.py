"""The bodies of `POST /tokenize` and `POST /detokenize`, as vLLM has them."""

from typing import Annotated

from pydantic import FailFast

from server.api.common.conversation import ChatFields
from server.api.common.fields import Fields, checked, read_object
from server.api.common.sampling import TokenId
from server.errors import BadRequestError


class TokenizeTextRequest(Fields):
    """A text to tokenize. Nothing is put before it, and what spells a control token stays text."""

    model: str | None = None
    """A listed model."""
    prompt: str
    """The text.

    Differs: vLLM puts special tokens before it unless told not to.
    """
    return_token_strs: bool | None = None
    """True: the response spells each token too."""


class TokenizeChatRequest(ChatFields):
    """A conversation to tokenize: with the same fields, the prompt of a chat completion."""

    return_token_strs: bool | None = None
    """True: the response spells each token too."""


class DetokenizeRequest(Fields):
    """Token ids to turn into text."""

    model: str | None = None
    """A listed model."""
    tokens: Annotated[list[TokenId], FailFast()]
    """Token ids of the model; control tokens come out spelled."""


def read_tokenize_request(content: bytes) -> TokenizeTextRequest | TokenizeChatRequest:
    """Parses and checks a body; raises BadRequestError."""
    fields = read_object(content, TokenizeChatRequest.model_fields)
    if fields.get("prompt") is None:
        if fields.get("messages") is None:
            raise BadRequestError("prompt or messages: one of them is required.", param="prompt")
        return checked(TokenizeChatRequest, {name: value for name, value in fields.items() if name != "prompt"})
    if fields.get("messages") is not None:
        raise BadRequestError("prompt and messages: send only one of them.", param="messages")
    return checked(TokenizeTextRequest, fields)


def read_detokenize_request(content: bytes) -> DetokenizeRequest:
    """Parses and checks a body; raises BadRequestError."""
    return checked(DetokenizeRequest, read_object(content, DetokenizeRequest.model_fields))

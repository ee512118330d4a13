"""What the responses of several APIs have in common, for the OpenAPI document and docs/api/.

The responses themselves are built as plain dicts; tests hold them against these models.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]


class Answer(BaseModel):
    """Base of all responses and their parts: there are no other fields than those named."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ErrorDetails(Answer):
    """What went wrong."""

    message: str
    """One line, for a person."""
    type: Literal["invalid_request_error", "service_unavailable_error", "server_error", "requests", "tokens"]
    """The kind of the error; of a 429, what there were too many of."""
    param: str | None
    """The field at fault, as in `messages[0].content`."""
    code: str | None
    """`context_length_exceeded`, `insufficient_permissions`, `invalid_api_key`, `invalid_encrypted_content`,
    `model_not_found`, `previous_response_not_found`, `rate_limit_exceeded`, `request_not_found`, `request_too_large`,
    `response_not_found`, or null.
    """


class ErrorResponse(Answer):
    """An error, as the whole response or as the last event of a stream."""

    error: ErrorDetails
    """What went wrong."""


class PromptDetails(Answer):
    """Of the prompt's tokens."""

    cached_tokens: Count
    """How many were found in the prefix cache."""


class CompletionDetails(Answer):
    """Of the generated tokens."""

    reasoning_tokens: Count
    """How many were thinking, the wrap-up counted; exact."""
    draft_tokens: Count | None = None
    """In a mode of kind `auto`: tokens of dropped drafts, or by which the model chose. They are in no other count."""
    found_again_tokens: Count | None = None
    """In a mode of kind `auto`: how many of the prompt's tokens had not to be computed again after a dropped draft."""
    trial_tokens: Count | None = None
    """In a mode that ends thoughts early: the tokens of answers that were tried. They are in no other count."""


class Usage(Answer):
    """Token counts."""

    prompt_tokens: Count
    """Of the prompt, once for all choices."""
    completion_tokens: Count
    """Of everything generated, over all choices: thinking, wrap-up, end tag, answer, end of the turn."""
    total_tokens: Count
    """Both together."""
    prompt_tokens_details: PromptDetails
    """Of the prompt's tokens."""
    completion_tokens_details: CompletionDetails
    """Of the generated tokens."""


class PlaceLogprob(Answer):
    """A token that could stand in a place of the prompt."""

    logprob: float
    """The natural logarithm of its probability by the model alone."""
    rank: int | None
    """1 for the likeliest; null for a token beyond those asked for."""
    decoded_token: str
    """Its text."""


class TokenLogprob(Answer):
    """A token with its probability."""

    token: str
    """Its text."""
    logprob: float | None
    """The natural logarithm of its probability by the model alone; null for a prompt's first token."""
    bytes: list[Annotated[int, Field(ge=0, le=255)]]
    """Its UTF-8 bytes, of which a character may take several tokens."""

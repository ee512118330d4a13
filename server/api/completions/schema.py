"""What the responses of `/v1/completions` look like, for the OpenAPI document and docs/api/completions.md."""

from typing import Literal

from server.api.common.schema import Answer, Count, PlaceLogprob, Usage


class TextLogprobs(Answer):
    """Log-probabilities of a text, a list for each field."""

    tokens: list[str]
    """The texts of the tokens."""
    token_logprobs: list[float | None]
    """Their log-probabilities; null for a prompt's first token."""
    top_logprobs: list[dict[str, float] | None]
    """The likeliest tokens in each place."""
    text_offset: list[Count]
    """Where each token begins in the text, in characters."""


class TextChoice(Answer):
    """One text; in a stream, more of it."""

    index: Count
    """Its number: all choices of the first prompt, then those of the next."""
    text: str
    """The text, after the prompt's own with `echo`."""
    logprobs: TextLogprobs | None
    """With `logprobs`."""
    finish_reason: Literal["stop", "length"] | None
    """Null only in a stream, before the last part."""
    stop_reason: str | int | None = None
    """The stop string, or the token of `stop_token_ids`, that ended the text; in a stream, in the last part."""
    token_ids: list[int] | None = None
    """All generated tokens, with `return_token_ids`."""
    prompt_token_ids: list[int] | None = None
    """The prompt's tokens, with `return_token_ids`; in a stream, in the first part."""
    prompt_logprobs: list[dict[str, PlaceLogprob] | None] | None = None
    """With `prompt_logprobs`: for each token of the prompt but the first, by token id."""


class TextCompletion(Answer):
    """A text completion; in a stream, one event of it."""

    id: str
    """Its id."""
    object: Literal["text_completion"]
    """The kind of the object, in a stream too."""
    created: int
    """Unix time, in seconds."""
    model: str
    """The model's own name."""
    system_fingerprint: str
    """In how many bits the weights are held: `twogear-bf16`, `twogear-int8` or `twogear-int4`."""
    choices: list[TextChoice]
    """`n` texts for each prompt."""
    usage: Usage | None = None
    """Token counts; in a stream as for chat completions."""

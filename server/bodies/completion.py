"""The body of `POST /v1/completions`: raw text or token ids, no template and hence no thinking of its own."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from server.bodies.fields import checked, read_object, refuse_misspelt, tag_of
from server.bodies.sampling import MAX_TOP_LOGPROBS, SamplingFields, TokenCount, TokenId
from server.errors import BadRequestError

MAX_PROMPTS = 256
EXTENSIONS = ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "priority")
# Asked for in vain: there is no template here to think with, nothing to put after the completion, no tools.
CHAT_ONLY = (
    "reasoning_mode", "thinking_token_budget", "reasoning_effort", "reasoning", "thinking", "chat_template_kwargs",
    "tools", "tool_choice", "response_format", "structured_outputs", "suffix",
)  # fmt: skip


def _kind_of_prompt(value: object) -> str | None:
    if isinstance(value, list) and value:
        inner = value[0]
        return "(texts)" if isinstance(inner, str) else "(lists)" if isinstance(inner, list) else "(list)"
    return tag_of(value)


Prompt = Annotated[
    Annotated[str, Tag("(text)")]
    | Annotated[list[TokenId], Field(min_length=1), Tag("(list)")]
    | Annotated[list[str], Field(max_length=MAX_PROMPTS), Tag("(texts)")]
    | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(max_length=MAX_PROMPTS), Tag("(lists)")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message="must be a string, a list of token ids, or a list of either",
    ),
]


class CompletionRequest(SamplingFields):
    """A text completion. Sampling fields that are absent take the defaults of the model's mode."""

    prompt: Prompt
    max_tokens: TokenCount | None = Field(default=None, description="16 if absent; 0 with echo only.")
    echo: bool | None = Field(default=None, description="The prompt comes first in the text.")
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        default=None, description="Log-probabilities, with this many of the likeliest tokens."
    )
    best_of: int | None = Field(default=None, description="Only the same as n.")


def read_completion_request(content: bytes) -> CompletionRequest:
    """Parses and checks a body; raises BadRequestError, with `param` where a field is at fault."""
    fields = read_object(content)
    refuse_misspelt(fields, {*CompletionRequest.model_fields, *CHAT_ONLY}, EXTENSIONS)
    for name in CHAT_ONLY:
        if fields.get(name) not in (None, "", [], {}, "none", {"type": "text"}):
            raise BadRequestError(f"{name} means nothing to a text completion.", param=name)
    return checked(CompletionRequest, fields)

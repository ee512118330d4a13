"""The body of `POST /v1/completions`: raw text or token ids, no template and hence no thinking of its own."""

from typing import Annotated

from pydantic import Discriminator, FailFast, Field, Tag

from server.api.common.fields import checked, read_object, refuse_misspelt, tag_of
from server.api.common.refused import RETIRED, UNSUPPORTED, refuse_retired, refuse_unsupported
from server.api.common.sampling import MAX_TOP_LOGPROBS, SamplingFields, TokenCount, TokenId
from server.errors import BadRequestError

MAX_PROMPTS = 256
EXTENSIONS = (
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "structured_outputs",
    "priority", "return_token_ids", "cache_salt", "allowed_token_ids", "bad_words", "skip_special_tokens",
    "include_stop_str_in_output", "prompt_logprobs", "return_tokens_as_token_ids",
)  # fmt: skip
# Asked for in vain: there is no template here to think with, nothing to put after the completion, no tools.
CHAT_ONLY = (
    "reasoning_mode", "thinking_token_budget", "reasoning_effort", "reasoning", "thinking", "chat_template_kwargs",
    "enable_thinking", "think", "thinking_budget", "thinking_budget_tokens", "reasoning_budget",
    "tools", "tool_choice", "suffix",
)  # fmt: skip
# Of a conversation too; they ask for nothing where there is none.
IDLE = (
    "include_reasoning", "separate_reasoning", "stream_reasoning", "parallel_tool_calls", "add_generation_prompt",
    "continue_final_message", "reasoning_logprobs",
)  # fmt: skip
INSTEAD = {"messages": "prompt"}


class FirstError(FailFast):
    """FailFast that may stand in a union, for which its kind has to have a hash."""

    def __hash__(self) -> int:
        return hash(self.fail_fast)


def _kind_of_prompt(value: object) -> str | None:
    if isinstance(value, list) and value:
        inner = value[0]
        return "(texts)" if isinstance(inner, str) else "(lists)" if isinstance(inner, list) else "(list)"
    return tag_of(value)


TokenIds = Annotated[list[TokenId], Field(min_length=1), FirstError()]
Prompt = Annotated[
    Annotated[str, Tag("(text)")]
    | Annotated[TokenIds, Tag("(list)")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS), FirstError(), Tag("(texts)")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS), FirstError(), Tag("(lists)")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message="must be a string, a list of token ids, or a list of either",
    ),
]


class CompletionRequest(SamplingFields):
    """A text completion. Sampling fields that are absent take the defaults of the model's mode."""

    prompt: Prompt
    """A text, of which nothing is a control token, or token ids, which may be any; or a list of either.

    Differs: OpenAI and vLLM let text hold control tokens.
    """
    max_tokens: TokenCount | None = None
    """The most tokens to generate; 16 if absent. 0 with `echo` only."""
    echo: bool | None = None
    """True: the prompt comes first in the text, and with `logprobs` its tokens are scored."""
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """The log-probabilities of the tokens, with this many of the likeliest in their place."""
    best_of: int | None = None
    """Only the same as `n`.

    Differs: OpenAI draws more choices than it returns.
    """


def read_completion_request(content: bytes) -> CompletionRequest:
    """Parses and checks a body; raises BadRequestError, with `param` where a field is at fault."""
    fields = read_object(content, CompletionRequest.model_fields)
    refuse_misspelt(fields, {*CompletionRequest.model_fields, *CHAT_ONLY, *RETIRED, *UNSUPPORTED}, EXTENSIONS)
    refuse_retired(fields)
    refuse_unsupported(fields, {*CompletionRequest.model_fields, *CHAT_ONLY, *IDLE}, INSTEAD)
    for name in CHAT_ONLY:
        if fields.get(name) not in (None, False, "", [], {}, "none", {"type": "text"}):
            raise BadRequestError(f"{name} means nothing to a text completion: use /v1/chat/completions.", param=name)
    return checked(CompletionRequest, fields)

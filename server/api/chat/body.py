"""The body of `POST /v1/chat/completions`: which fields there are, their types and ranges.

Says nothing about what the fields do; `server.api.chat.admission` applies them.
"""

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, WithJsonSchema

from server.api.common.fields import Fields, checked, read_object, refuse_misspelt
from server.api.common.formats import ToolChoice
from server.api.common.sampling import MAX_TOP_LOGPROBS, SamplingFields, TokenCount
from server.errors import BadRequestError

# Fields of before, and of before in vLLM: refused unless they ask for nothing, rather than ignored.
RETIRED = {
    "functions": "tools", "function_call": "tool_choice",
    "guided_json": "structured_outputs", "guided_regex": "structured_outputs", "guided_choice": "structured_outputs",
    "guided_grammar": "structured_outputs",
}  # fmt: skip
# The fields beyond OpenAI's own whose misspellings are refused: ignoring one would silently change what is asked.
EXTENSIONS = (
    "reasoning_mode", "thinking_token_budget", "reasoning_effort", "reasoning", "thinking", "chat_template_kwargs",
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "structured_outputs",
    "reasoning_logprobs", "continue_final_message", "add_generation_prompt", "priority", "return_token_ids",
)  # fmt: skip

STRING = {"type": ["string", "null"]}
MESSAGE_SCHEMA = {
    "title": "Message",
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {
            "enum": ["system", "developer", "user", "assistant", "tool"],
            "description": "`developer` is OpenAI's newer name for `system`.",
        },
        "content": {
            "description": "Text, or parts of type text, which are joined. An assistant's may be null. "
            "Differs: images, audio and files are refused.",
            "anyOf": [
                {"type": "string"},
                {"type": "null"},
                {"type": "array", "items": {
                    "type": "object",
                    "required": ["type", "text"],
                    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                }},
            ],
        },
        "name": {**STRING, "description": "Accepted and not shown to the model: its format has no place for it."},
        "tool_calls": {
            "description": "The calls of a past assistant turn.",
            "anyOf": [
                {"type": "null"},
                {"type": "array", "items": {
                    "type": "object",
                    "required": ["function"],
                    "properties": {
                        "id": {},
                        "type": {"const": "function"},
                        "function": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {
                                "name": {"type": "string", "minLength": 1},
                                "arguments": {"type": ["string", "object", "null"]},
                            },
                        },
                    },
                }},
            ],
        },
        "tool_call_id": {**STRING, "description": "Of a tool's result; results are shown in their order."},
        "reasoning_content": {
            "description": "The thinking of an assistant's turn: of past turns it is dropped; "
            "with `continue_final_message` that of the last one is gone on with.",
        },
    },
}  # fmt: skip
# Only documented here: `chat_templates.messages` checks them, for training too.
Message = Annotated[dict[str, Any], WithJsonSchema(MESSAGE_SCHEMA)]

TOOL_SCHEMA = {
    "title": "Tool",
    "type": "object",
    "required": ["function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"},
                "description": {"type": "string"},
                "parameters": {"type": ["object", "null"], "description": "A JSON schema of the arguments."},
                "strict": {"description": "Means nothing here: `tool_choice` says whether a grammar binds the call."},
            },
        },
    },
}
# As for messages: `chat_templates.messages` checks them.
Tool = Annotated[dict[str, Any], WithJsonSchema(TOOL_SCHEMA)]
MAX_TOOLS = 256

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class ReasoningOptions(Fields):
    """OpenRouter's way to ask for thinking."""

    enabled: bool | None = None
    """True is the profile's mode for thinking, false the one that answers at once."""
    effort: Effort | None = None
    """As `reasoning_effort`."""
    max_tokens: TokenCount | None = None
    """The most tokens of thinking."""
    exclude: bool | None = None
    """True: think, but leave the thinking out of the response."""


class ThinkingOptions(Fields):
    """Anthropic's and DeepSeek's way to ask for thinking."""

    type: Literal["enabled", "disabled"]
    """`enabled` is the profile's mode for thinking, `disabled` the one that answers at once."""
    budget_tokens: TokenCount | None = None
    """The most tokens of thinking."""


class ChatTemplateKwargs(Fields):
    """vLLM's and SGLang's way to ask for thinking; templates get no other variables from clients."""

    enable_thinking: bool | None = None
    """True is the profile's mode for thinking, false the one that answers at once."""
    thinking: bool | None = None
    """The same, by the name that DeepSeek's and Granite's templates have for it."""


class ChatRequest(SamplingFields):
    """A chat completion."""

    messages: Annotated[list[Message], Field(min_length=1), FailFast()]
    """The conversation. Whatever text it holds is text: `</think>` in a message is no control token."""
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    """The functions that the model may call."""
    tool_choice: ToolChoice | None = None
    """`auto`, the default where there are tools, lets the model choose, thinking included. `none` forbids calls.
    `required` and a named tool bind the answer to calls that fit their schemas; the thinking stays free.

    Differs: OpenAI's `allowed_tools` and `custom` are not known here.
    """
    parallel_tool_calls: bool | None = None
    """False, or a tool that is named: at most one call."""
    add_generation_prompt: bool | None = None
    """False: no turn is opened for the model.

    Differs: not in OpenAI's API.
    """
    continue_final_message: bool | None = None
    """True: the last message, an assistant's, is gone on with; the response has what follows it.

    Differs: not in OpenAI's API; vLLM wants `add_generation_prompt: false` beside it, here it is implied.
    """
    reasoning_mode: str | None = None
    """A mode of the served profile: template, sampling and token limits of the request, all at once.

    Differs: in no other API.
    """
    reasoning_effort: Effort | None = None
    """`none` is the profile's mode that answers at once. The others are its mode for thinking, with a growing share of
    the token limit for the thinking.

    Differs: to OpenAI a hint for the model, here a bound that holds.
    """
    reasoning: ReasoningOptions | None = None
    """OpenRouter's way to ask for thinking.

    Differs: not in OpenAI's chat API.
    """
    thinking: ThinkingOptions | None = None
    """Anthropic's and DeepSeek's way to ask for thinking.

    Differs: not in OpenAI's API.
    """
    chat_template_kwargs: ChatTemplateKwargs | None = None
    """vLLM's and SGLang's way to ask for thinking.

    Differs: not in OpenAI's API; other variables than `enable_thinking` and `thinking` are ignored.
    """
    thinking_token_budget: TokenCount | None = None
    """The most tokens of thinking, wrap-up included. In a mode that does not think it has no effect.

    Differs: not in OpenAI's API; in vLLM the phrase that ends the thinking is shown and the server's own.
    """
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    """The most tokens to generate, thinking included."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """The same under its older name. Both may be sent if they are equal."""
    logprobs: bool | None = None
    """True: the log-probabilities of the answer's tokens, by the model alone, before temperature and penalties."""
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    """With each token, this many of the likeliest in its place. Needs `logprobs`."""
    reasoning_logprobs: bool | None = None
    """True: those of the thinking too, as `logprobs.reasoning`. Needs `logprobs`.

    Differs: in no other API.
    """


def read_chat_request(content: bytes) -> ChatRequest:
    """Parses and checks a body; raises BadRequestError, with `param` where a field is at fault."""
    fields = read_object(content, ChatRequest.model_fields)
    refuse_misspelt(fields, {*ChatRequest.model_fields, *RETIRED}, EXTENSIONS)
    refuse_retired(fields)
    return checked(ChatRequest, fields)


def refuse_retired(fields: dict[str, Any]) -> None:
    """Raises BadRequestError for a field of RETIRED that asks for something."""
    for name, newer in RETIRED.items():
        if fields.get(name) not in (None, [], "none", "auto"):
            raise BadRequestError(f"{name} is not supported: use {newer}.", param=name)

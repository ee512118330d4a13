"""The body of `POST /v1/chat/completions`: which fields there are, their types and ranges.

Says nothing about what the fields do; `server.requests.chat` applies them.
"""

from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, WithJsonSchema

from server.bodies.fields import Fields, checked, read_object, refuse_misspelt
from server.bodies.formats import ResponseFormat, StructuredOutputs, ToolChoice
from server.bodies.sampling import MAX_TOP_LOGPROBS, SamplingFields, TokenCount
from server.errors import BadRequestError

# OpenAI's fields of before: refused unless they ask for nothing, rather than ignored.
RETIRED = {"functions": "tools", "function_call": "tool_choice"}
# The fields beyond OpenAI's own whose misspellings are refused: ignoring one would silently change what is asked.
EXTENSIONS = (
    "reasoning_mode", "thinking_token_budget", "reasoning_effort", "reasoning", "thinking", "chat_template_kwargs",
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "structured_outputs",
    "reasoning_logprobs", "continue_final_message", "add_generation_prompt", "priority", "return_token_ids",
)  # fmt: skip


MESSAGE_SCHEMA = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {
                    "type": "object",
                    "required": ["type", "text"],
                    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                }},
            ]
        },
        "name": {"type": "string"},
        "tool_call_id": {"type": "string"},
    },
}  # fmt: skip
# Only documented here: `chat_templates.messages` checks them, for training too.
Message = Annotated[dict[str, Any], WithJsonSchema(MESSAGE_SCHEMA)]


TOOL_SCHEMA = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string"},
                "description": {"type": "string"},
                "parameters": {"type": "object"},
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
    effort: Effort | None = None
    max_tokens: TokenCount | None = Field(default=None, description="The most tokens of thinking.")
    exclude: bool | None = Field(default=None, description="Think, but leave the thinking out of the response.")


class ThinkingOptions(Fields):
    """Anthropic's and DeepSeek's way to ask for thinking."""

    type: Literal["enabled", "disabled"]
    budget_tokens: TokenCount | None = Field(default=None, description="The most tokens of thinking.")


class ChatTemplateKwargs(Fields):
    """vLLM's and SGLang's way to ask for thinking; the templates have no other variables."""

    enable_thinking: bool | None = None


class ChatRequest(SamplingFields):
    """A chat completion."""

    messages: Annotated[list[Message], Field(min_length=1), FailFast()]
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = Field(default=None, description='"auto" if there are tools.')
    parallel_tool_calls: bool | None = Field(default=None, description="False: at most one call.")
    response_format: ResponseFormat | None = Field(default=None, description="Binds the answer, not the thinking.")
    structured_outputs: StructuredOutputs | None = Field(default=None, description="The same, as in vLLM.")
    add_generation_prompt: bool | None = Field(default=None, description="False: no turn is opened for the model.")
    continue_final_message: bool | None = Field(
        default=None, description="The last message, an assistant's, is gone on with; the response has what follows it."
    )
    reasoning_mode: str | None = Field(default=None, description='"standard" or "reasoning"', examples=["reasoning"])
    reasoning_effort: Effort | None = Field(
        default=None, description='"none" is standard mode; the others are reasoning mode with a share of the limit.'
    )
    reasoning: ReasoningOptions | None = None
    thinking: ThinkingOptions | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = None
    thinking_token_budget: TokenCount | None = Field(
        default=None, description="The most tokens of thinking, in reasoning mode."
    )
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="The most tokens to generate, thinking included."
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(default=None, description="The same under its older name.")
    logprobs: bool | None = Field(default=None, description="Log-probabilities of the answer's tokens.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        default=None, description="With each, this many of the likeliest tokens."
    )
    reasoning_logprobs: bool | None = Field(
        default=None, description="With logprobs: those of the thinking too, as `logprobs.reasoning`."
    )


def read_chat_request(content: bytes) -> ChatRequest:
    """Parses and checks a body; raises BadRequestError, with `param` where a field is at fault."""
    fields = read_object(content)
    refuse_misspelt(fields, {*ChatRequest.model_fields, *RETIRED}, EXTENSIONS)
    _refuse_retired(fields)
    return checked(ChatRequest, fields)


def _refuse_retired(fields: dict[str, Any]) -> None:
    for name, newer in RETIRED.items():
        if fields.get(name) not in (None, [], "none", "auto"):
            raise BadRequestError(f"{name} is no longer supported: use {newer}.", param=name)

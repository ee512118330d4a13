"""The body of `POST /v1/chat/completions`: which fields there are, their types and ranges.

Says nothing about what the fields do; `server.admission` applies them.
"""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, FailFast, Field, Tag, WithJsonSchema

from server.bodies.fields import INT64, Fields, checked, read_object, refuse_misspelt, tag_of
from server.errors import BadRequestError

MAX_STOPS = 16

# Fields of the contract that later versions will take: refused unless they ask for nothing, rather than ignored.
NOT_YET: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "priority": (0,),
}
# The fields beyond OpenAI's own whose misspellings are refused: ignoring one would silently change what is asked.
EXTENSIONS = (
    "reasoning_mode", "thinking_token_budget", "reasoning_effort", "reasoning", "thinking", "chat_template_kwargs",
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "structured_outputs",
    "continue_final_message", "add_generation_prompt", "priority",
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


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
TokenCount = Annotated[int, Field(ge=0)]


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


class StreamOptions(Fields):
    """Options of a streamed response."""

    include_usage: bool = False


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = Annotated[
    Annotated[StopString, Tag("(text)")] | Annotated[list[StopString], Field(max_length=MAX_STOPS), Tag("(list)")],
    Discriminator(tag_of, custom_error_type="stop", custom_error_message="must be a string or a list of strings"),
]


class ChatRequest(Fields):
    """A chat completion. Sampling fields that are absent take the mode's defaults."""

    messages: Annotated[list[Message], Field(min_length=1), FailFast()]
    model: str | None = Field(default=None, description="A listed model; an alias names the mode too.")
    reasoning_mode: str | None = Field(default=None, description='"standard" or "reasoning"', examples=["reasoning"])
    reasoning_effort: Effort | None = Field(
        default=None,
        description='"none" is standard mode; the others are reasoning mode with a share of the token limit.',
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
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT64)] | None = Field(default=None, description="0 or -1: no limit")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    stop: Stop | None = Field(default=None, description="Ends the answer before this text; thinking is not searched.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = Field(
        default=None, description="End the answer; thinking is not searched."
    )
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def read_chat_request(content: bytes) -> ChatRequest:
    """Parses and checks a body; raises BadRequestError, with `param` where a field is at fault."""
    fields = read_object(content)
    refuse_misspelt(fields, {*ChatRequest.model_fields, *NOT_YET}, EXTENSIONS)
    _refuse_not_yet(fields)
    return checked(ChatRequest, fields)


def _refuse_not_yet(fields: dict[str, Any]) -> None:
    for name, neutral in NOT_YET.items():
        value = fields.get(name)
        if value is not None and value not in neutral:
            raise BadRequestError(f"{name} is not supported by this version.", param=name)

"""The fields of a conversation as OpenAI has them: messages, tools, and where the answer begins.

`ChatFields` are all fields of a chat completion, which vLLM's `/tokenize` takes as well.
"""

from typing import Annotated, Any

from pydantic import FailFast, Field, WithJsonSchema

from server.api.common.fields import Fields
from server.api.common.sampling import MAX_TOP_LOGPROBS, SamplingFields
from server.api.common.thinking import ThinkingFields, template_variables
from server.api.common.tools import CustomTool, ToolChoice, Tools, ToolSet
from server.core.request import Conversation
from server.errors import BadRequestError

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
            "description": "Text, or parts of it, which are joined. An assistant's and a tool's may be null. An "
            "assistant's parts of type `thinking` are taken as `reasoning_content`. "
            "Differs: images, audio and files are refused.",
            "anyOf": [
                {"type": "string"},
                {"type": "null"},
                {"type": "array", "items": {
                    "type": "object",
                    "required": ["type"],
                    "properties": {
                        "type": {"enum": ["text", "input_text", "output_text", "refusal", "thinking"]},
                        "text": {"type": "string"},
                        "refusal": {"type": "string"},
                        "thinking": {"type": ["string", "array"], "items": {"type": "object"}},
                    },
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
                    "properties": {
                        "id": {},
                        "type": {"enum": ["function", "custom"]},
                        "custom": {
                            "type": "object",
                            "description": "Of a call of a custom tool.",
                            "required": ["name", "input"],
                            "properties": {"name": {"type": "string", "minLength": 1}, "input": {"type": "string"}},
                        },
                        "function": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {
                                "name": {"type": "string", "minLength": 1},
                                "arguments": {
                                    "description": "JSON in a string; text that is no JSON object is taken as it is.",
                                    "type": ["string", "object", "null"],
                                },
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


class ConversationFields(Fields):
    """Messages and tools."""

    messages: Annotated[list[Message], Field(min_length=1), FailFast()]
    """The conversation. Whatever text it holds is text: `</think>` in a message is no control token."""
    tools: Tools | None = None
    """The functions and custom tools that the model may call."""
    tool_choice: ToolChoice | None = None
    """`auto`, the default where there are tools, lets the model choose, thinking included. `none` forbids calls.
    `required` and a named tool bind the answer to calls that fit their schemas; the thinking stays free. With
    `allowed_tools` the model is shown no others.
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


class ChatFields(ThinkingFields, ConversationFields, SamplingFields):
    """All fields of a chat completion."""

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


def conversation_of(body: ChatFields, tools: ToolSet) -> Conversation:
    """Raises BadRequestError where the fields contradict each other."""
    if body.add_generation_prompt and body.continue_final_message:
        raise BadRequestError(
            "add_generation_prompt and continue_final_message contradict each other: send only one of them.",
            param="continue_final_message",
        )
    return Conversation(
        messages=body.messages,
        tools=tools.tools,
        opens_turn=body.add_generation_prompt is not False,
        continues=bool(body.continue_final_message),
        variables=template_variables(body),
    )


def tool_set_of(body: ConversationFields) -> ToolSet:
    """The tools and their use; raises BadRequestError."""
    return ToolSet(body.tools or (), body.tool_choice, parallel=body.parallel_tool_calls is not False)


def custom_tools_of(body: ConversationFields) -> frozenset[str]:
    """The names of the tools that take text."""
    return frozenset(tool.custom.name for tool in body.tools or () if isinstance(tool, CustomTool))

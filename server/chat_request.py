"""The body of `POST /v1/chat/completions`: which fields there are, their types and ranges, and errors that name them.

Says nothing about what the fields do; `server.chat` applies them.
"""

from difflib import get_close_matches
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, ConfigDict, Discriminator, FailFast, Field, Tag, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails

from server.errors import BadRequestError

INT64 = 2**63 - 1
MAX_STOPS = 16
MAX_NAME = 40  # no misspelling of an extension is longer
MAX_CHECKED = 64  # unknown fields looked at, so that thousands of them cost nothing
MAX_PATH = 200

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
    "reasoning_effort": (),
    "reasoning": (),
    "thinking": (),
    "chat_template_kwargs": ({},),
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


class Fields(BaseModel):
    """Base of all parts of a body: types are strict, numbers finite, unknown fields ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


def _text_or_list(value: object) -> str | None:
    if isinstance(value, str):
        return "(text)"
    return "(list)" if isinstance(value, list) else None


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


class StreamOptions(Fields):
    """Options of a streamed response."""

    include_usage: bool = False


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = Annotated[
    Annotated[StopString, Tag("(text)")] | Annotated[list[StopString], Field(max_length=MAX_STOPS), Tag("(list)")],
    Discriminator(
        _text_or_list, custom_error_type="stop", custom_error_message="must be a string or a list of strings"
    ),
]


class ChatRequest(Fields):
    """A chat completion. Sampling fields that are absent take the mode's defaults."""

    messages: Annotated[list[Message], Field(min_length=1), FailFast()]
    model: str | None = Field(None, description="A listed model; an alias names the mode too.")
    reasoning_mode: str | None = Field(None, description='"standard" or "reasoning"', examples=["reasoning"])
    thinking_token_budget: Annotated[int, Field(ge=0)] | None = Field(
        None, description="The most tokens of thinking, in reasoning mode."
    )
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The most tokens to generate, thinking included."
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="The same under its older name.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT64)] | None = Field(None, description="0 or -1: no limit")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    stop: Stop | None = Field(None, description="Ends the answer before this text; thinking is not searched.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = Field(
        None, description="End the answer; thinking is not searched."
    )
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def read_chat_request(body: bytes) -> ChatRequest:
    """Parses and checks a body; raises BadRequestError, with `param` where a field is at fault."""
    fields = _read_object(body)
    _refuse_misspelt(fields)
    _refuse_not_yet(fields)
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _bad_field(error.errors(include_url=False, include_input=False)[0]) from None


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"The body is not valid JSON: {error.msg} (character {error.pos}).") from None
    if not isinstance(fields, dict):
        raise BadRequestError("The body must be a JSON object.")
    return fields


def _refuse_misspelt(fields: dict[str, Any]) -> None:
    known = {*ChatRequest.model_fields, *NOT_YET}
    unknown = [name for name in fields if name not in known and len(name) <= MAX_NAME]
    for name in unknown[:MAX_CHECKED]:
        meant = _meant_extension(name)
        if meant is not None:
            raise BadRequestError(f'There is no field "{name}". Did you mean "{meant}"?', param=name)


def _meant_extension(name: str) -> str | None:
    """The extension that `name` is a slip of: other case or separators, or a letter or two beside it."""
    plain = {extension.replace("_", ""): extension for extension in EXTENSIONS}
    letters = name.lower().replace("_", "").replace("-", "")
    if letters in plain:
        return plain[letters]
    long = [word for word in plain if len(word) > len("topk")]
    matches = get_close_matches(letters, long, n=1, cutoff=0.84)
    return plain[matches[0]] if matches else None


def _refuse_not_yet(fields: dict[str, Any]) -> None:
    for name, neutral in NOT_YET.items():
        value = fields.get(name)
        if value is not None and value not in neutral:
            raise BadRequestError(f"{name} is not supported by this version.", param=name)


def _bad_field(error: ErrorDetails) -> BadRequestError:
    param = _path([step for step in error["loc"] if step not in ("(text)", "(list)")])
    problem = "is required" if error["type"] == "missing" else error["msg"].replace("Input should be", "must be", 1)
    return BadRequestError(f"{param}: {problem}.", param=param)


def _path(steps: list[str | int]) -> str:
    """`messages[0].content`, as clients write it; cut where a client's own key makes it long."""
    path = ""
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path[:MAX_PATH]

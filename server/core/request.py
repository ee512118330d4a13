"""A request in the core's own terms: what every API makes of its bodies, and all that the core sees of them.

Its fields have neutral names, most of them OpenAI's. Errors name fields as the client knows them: `names` has the API's
name of each neutral field that is called otherwise there. What comes from a field that only some APIs have (a way to
ask for a mode, a form of the answer) brings the API's name with it, as `field`.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from server.errors import BadRequestError
from server.modes.thinking import ModeWish


@dataclass(frozen=True)
class Conversation:
    """Messages and tools as chat templates take them, still unchecked: `chat_templates.messages` checks them.

    `opens_turn`: a turn is opened for the model. `continues`: instead, the last message is continued.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    opens_turn: bool = True
    continues: bool = False


@dataclass(frozen=True)
class Texts:
    """Raw prompts. Nothing in them becomes a control token."""

    texts: Sequence[str]


@dataclass(frozen=True)
class TokenPrompts:
    """Prompts in token ids."""

    prompts: Sequence[list[int]]


Prompt = Conversation | Texts | TokenPrompts


@dataclass(frozen=True)
class Stop:
    """What ends an answer: `texts`, tokens, the model's end of turn; and the least tokens before any end."""

    texts: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True)
class JsonForm:
    """JSON that fits `schema`, which may be the text of one."""

    field: str
    schema: Any


@dataclass(frozen=True)
class RegexForm:
    """Text that all of `pattern` matches, in the syntax of Rust's regex crate."""

    field: str
    pattern: str


@dataclass(frozen=True)
class ChoiceForm:
    """Exactly one of `texts`."""

    field: str
    texts: Sequence[str]


@dataclass(frozen=True)
class GrammarForm:
    """What `grammar` generates, in Lark's or llama.cpp's notation."""

    field: str
    grammar: str


Form = JsonForm | RegexForm | ChoiceForm | GrammarForm
"""The form of an answer that is not free; `field` asked for it."""


@dataclass(frozen=True)
class NamedTool:
    """The tool that must be called."""

    name: str


@dataclass(frozen=True)
class ToolUse:
    """Whether tools may or must be called; `parallel`: more than one call in an answer."""

    choice: Literal["auto", "none", "required"] | NamedTool = "auto"
    parallel: bool = True


@dataclass(frozen=True)
class Shown:
    """What the response shows beside the text.

    `logprobs`: with each token of the answer its log-probability, and so many of the likeliest; `prompt_logprobs` the
    same of the prompt, and `reasoning_logprobs` of the thinking too. `thinking`: the thinking, if there is any.
    """

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    reasoning_logprobs: bool = False
    token_ids: bool = False
    thinking: bool = True


NO_WISH = ModeWish()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked. Absent sampling fields and limits are the mode's to fill.

    `size`: of the body, in bytes. `sampling`: those of engine.sampling.SAMPLING_FIELDS that the client set.
    `max_tokens` 0: the prompt is read, nothing is generated. `default_max_tokens`: the most where the client names no
    limit. `forms`: what binds the answer; more than one is an error. `streamed`: the response is sent as it comes.
    `arrived`: on the clock of perf_counter.
    """

    id: str
    prompt: Prompt
    size: int = 0
    model: str | None = None
    mode: ModeWish = NO_WISH
    max_tokens: int | None = None
    default_max_tokens: int | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Stop = Stop()
    n: int = 1
    forms: Sequence[Form] = ()
    tool_use: ToolUse = ToolUse()
    shown: Shown = Shown()
    priority: int | None = None
    streamed: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def prompt_path(self) -> str:
        """The neutral field that the prompt is in."""
        return "messages" if isinstance(self.prompt, Conversation) else "prompt"

    def name(self, path: str) -> str:
        """What the API calls the neutral field at `path`, as in `messages[0].content`: the longest part of it that has
        a name in `names`, and the rest as it is.
        """
        for end in range(len(path), 0, -1):
            if path[:end] in self.names and path[end : end + 1] in ("", ".", "["):
                return self.names[path[:end]] + path[end:]
        return path

    def refusal(self, path: str, message: str) -> BadRequestError:
        """The error for the neutral field at `path`; `{field}` in the message is its name."""
        return BadRequestError(message.replace("{field}", self.name(path)), param=self.name(path))


def new_id(kind: str) -> str:
    """An id such as `chatcmpl-…`."""
    return f"{kind}-{secrets.token_hex(12)}"

"""A request in the core's own terms: what every API makes of its bodies, and all that the core sees of them.

Its fields have neutral names, most of them OpenAI's. Errors name fields as the client knows them: `names` has the API's
name of each neutral field that is called otherwise there. What comes from a field that only some APIs have (a way to
ask for a mode, a form of the answer) brings the API's name with it, as `field`.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from server.access.quota import ANYONE, Caller
from server.core.bytes_budget import BytesHeld
from server.core.grammar_jobs import TextGrammar
from server.errors import BadRequestError
from server.modes.thinking import ModeWish
from server.telemetry.record import RequestRecord


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request beside its body.

    `size`: of the body, in bytes. `client`: the name of the API key that it came with, empty where the server has no
    keys. `caller`: what that key may do and has used. `arrived`: on the clock of perf_counter. `held`: the memory that
    a long body may take until it is planned. `record`: what the log will say of it, its id among that.
    """

    size: int = 0
    client: str = ""
    caller: Caller = ANYONE
    arrived: float = msgspec.field(default_factory=time.perf_counter)
    held: BytesHeld | None = None
    record: RequestRecord = msgspec.field(default_factory=RequestRecord)

    def planned(self) -> None:
        """The body is needed no more."""
        if self.held is not None:
            self.held.release()


class Conversation(msgspec.Struct, frozen=True):
    """Messages and tools as chat templates take them, still unchecked: `chat_templates.messages` checks them.

    `opens_turn`: a turn is opened for the model. `continues`: instead, the last message is continued. `variables`: what
    the chat template shall be told beside these.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    opens_turn: bool = True
    continues: bool = False
    variables: Mapping[str, Any] = msgspec.field(default_factory=dict)


class Texts(msgspec.Struct, frozen=True):
    """Raw prompts. Nothing in them becomes a control token."""

    texts: Sequence[str]


class TokenPrompts(msgspec.Struct, frozen=True):
    """Prompts in token ids."""

    prompts: Sequence[list[int]]


Prompt = Conversation | Texts | TokenPrompts


class Stop(msgspec.Struct, frozen=True):
    """What ends an answer: `texts`, tokens, the model's end of turn; and the least tokens before any end.

    `is_shown`: the text or token of the client's that ended the answer stands at its end.
    """

    texts: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    is_shown: bool = False


class JsonForm(msgspec.Struct, frozen=True):
    """JSON that fits `schema`, which may be the text of one."""

    field: str
    schema: Any


class RegexForm(msgspec.Struct, frozen=True):
    """Text that all of `pattern` matches, in the syntax of Rust's regex crate."""

    field: str
    pattern: str


class ChoiceForm(msgspec.Struct, frozen=True):
    """Exactly one of `texts`."""

    field: str
    texts: Sequence[str]


class GrammarForm(msgspec.Struct, frozen=True):
    """What `grammar` generates, in Lark's or llama.cpp's notation."""

    field: str
    grammar: str


Form = JsonForm | RegexForm | ChoiceForm | GrammarForm
"""The form of an answer that is not free; `field` asked for it."""


class NamedTool(msgspec.Struct, frozen=True):
    """The tool that must be called."""

    name: str


class ToolUse(msgspec.Struct, frozen=True):
    """Whether tools may or must be called; `parallel`: more than one call in an answer. `longest_name`: of a tool, in
    characters. `texts`: by the names of strict tools whose one argument is a text, what it has to fit.
    """

    choice: Literal["auto", "none", "required"] | NamedTool = "auto"
    parallel: bool = True
    longest_name: int = 64
    texts: Mapping[str, TextGrammar] = msgspec.field(default_factory=dict)


class Shown(msgspec.Struct, frozen=True):
    """What the response shows beside the text.

    `logprobs`: with each token of the answer its log-probability, and so many of the likeliest; `prompt_logprobs` the
    same of the prompt, and `reasoning_logprobs` of the thinking too; `tokens_as_ids`: these name tokens by their ids.
    `thinking`: the thinking, if there is any. `control_tokens`: those that say nothing to the parser, as text.
    """

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    reasoning_logprobs: bool = False
    token_ids: bool = False
    thinking: bool = True
    tokens_as_ids: bool = False
    control_tokens: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. Absent sampling fields and limits are the mode's to fill.

    `received`: what is known beside the body. `sampling`: those of engine.sampling.SAMPLING_FIELDS that the client set.
    `max_tokens` 0: the prompt is read, nothing is generated. `default_max_tokens`: the most where the client names no
    limit. `fits_to_context`: a limit beyond the context is cut to it, and no error. `allowed_token_ids`: no others are
    drawn. `bad_words`: texts that are not. `forms`: what binds the answer; more than one is an error. `streamed`: the
    response is sent as it comes. `kept_whole`: all of it is kept to its end, also then. `cache_salt`: what is
    remembered of the request's text is for requests of the same salt.
    """

    id: str
    prompt: Prompt
    received: Received = msgspec.field(default_factory=Received)
    model: str | None = None
    mode: ModeWish = ModeWish()
    max_tokens: int | None = None
    default_max_tokens: int | None = None
    fits_to_context: bool = False
    sampling: Mapping[str, float] = msgspec.field(default_factory=dict)
    seed: int | None = None
    logit_bias: Mapping[int, float] = msgspec.field(default_factory=dict)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    stop: Stop = Stop()
    n: int = 1
    forms: Sequence[Form] = ()
    tool_use: ToolUse = ToolUse()
    shown: Shown = Shown()
    priority: int | None = None
    streamed: bool = False
    kept_whole: bool = False
    cache_salt: str = ""
    names: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def most_choices(self) -> int:
        """How many there will be: `n` for each prompt."""
        prompt = self.prompt
        if isinstance(prompt, Conversation):
            return self.n
        return self.n * len(prompt.texts if isinstance(prompt, Texts) else prompt.prompts)

    @property
    def owner(self) -> tuple[str, str]:
        """Who shares with this request what is remembered of its text: those of the same key and salt."""
        return self.received.client, self.cache_salt

    @property
    def prompt_path(self) -> str:
        """The neutral field that the prompt is in."""
        return "messages" if isinstance(self.prompt, Conversation) else "prompt"

    def name(self, path: str) -> str:
        """What the API calls the neutral field at `path`, as in `messages[0].content`: the longest part of it that has
        a name in `names`, and the rest as it is.
        """
        if path in self.names:
            return self.names[path]
        known = [start for start in self.names if path.startswith(start) and path[len(start) :][:1] in ("", ".", "[")]
        longest = max(known, key=len, default="")
        return self.names[longest] + path[len(longest) :] if longest else path

    def refusal(self, path: str, message: str) -> BadRequestError:
        """The error for the neutral field at `path`; `{field}` in the message is its name."""
        return BadRequestError(message.replace("{field}", self.name(path)), param=self.name(path))


def new_id(kind: str, joint: str = "-") -> str:
    """An id such as `chatcmpl-…` or `msg_…`."""
    return f"{kind}{joint}{secrets.token_hex(12)}"

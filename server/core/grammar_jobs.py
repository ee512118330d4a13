"""What crosses between the front end and a process that writes grammars: one part of a request's grammar a job."""

from typing import Any, Literal

import msgspec

from chat_templates.tool_forms.form import CallForm


class RuleJob(msgspec.Struct, frozen=True, tag=True):
    """The grammar of an answer in the form that the client's field `param` asks for.

    `value`: a JSON schema or the text of one, a pattern, a list of texts, or a whole grammar.
    """

    param: str
    kind: Literal["json", "regex", "choice", "grammar"]
    value: Any


class TextGrammar(msgspec.Struct, frozen=True):
    """What a text has to fit: a regular expression, which matches all of it, or a grammar in Lark's notation."""

    kind: Literal["regex", "lark"]
    definition: str


class CallsJob(msgspec.Struct, frozen=True, tag=True):
    """The rules for calls of `tools` (names and schemas of arguments) in a form, as `CallRules` takes them.

    `params`: the client's field that each tool's schema, or the grammar of its text, came in. `texts`: the grammars of
    tools that take one text, by their names.
    """

    param: str
    form: CallForm
    tools: list[tuple[str, Any]]
    params: list[str]
    tokens: dict[str, int]
    several: bool
    is_free: bool = False
    texts: dict[str, TextGrammar] = {}


Job = RuleJob | CallsJob


class Written(msgspec.Struct, frozen=True, tag=True):
    """The rule, or the rules, or the whole grammar."""

    text: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """No grammar takes what the client sent, or it costs too much; `reason` in words. `param`: the field at fault, if
    it is not the job's.
    """

    reason: str
    param: str = ""


class Died(msgspec.Struct, frozen=True, tag=True):
    """The job ended its process, by the signal of that number; 0: by no signal."""

    signal: int


Reply = Written | Refused | Died

_ENCODER = msgspec.json.Encoder()
_JOBS: msgspec.json.Decoder[Job] = msgspec.json.Decoder(Job)
_REPLIES: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def encode(message: Job | Reply) -> bytes:
    """One line, without its end. Raises RecursionError for what is nested too deep."""
    return _ENCODER.encode(message)


def decode_job(line: bytes) -> Job:
    """What `encode` made a line of. Raises RecursionError."""
    return _JOBS.decode(line)


def decode_reply(line: bytes) -> Reply:
    """What `encode` made a line of."""
    return _REPLIES.decode(line)

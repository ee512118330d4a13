"""Our own templates, the files of this folder: for the embedded model and for checkpoints that bring none.

The text comes out as the templates wrote it; which of it is a control token is `format`'s to find.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from jinja2 import (
    ChoiceLoader,
    FileSystemLoader,
    FunctionLoader,
    StrictUndefined,
    Template,
    TemplateError,
    TemplateNotFound,
    TemplateSyntaxError,
)

from chat_templates.client_text import plain, protect, protect_all
from chat_templates.environment import Environment
from chat_templates.errors import FormatError
from chat_templates.limits import timed
from chat_templates.messages import Turn
from chat_templates.settings import FormatSettings, PromptStyle
from chat_templates.thinking_probe import Switch

CUT = "\udc81"
"""Where a template writes it (global `cut`), the text before and after is tokenized apart: there the prompt ends and
generation begins, or would have, so that a turn has the same ids when it is generated and when it comes back."""
# What code of a template can raise on a conversation that it was not written for.
TEMPLATE_ERRORS = (
    TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, MemoryError, RecursionError,
)  # fmt: skip
LONGEST_REASON = 500


class ChatTemplate(Protocol):
    """`has_thinking`: whether the model can think; `takes_tools`: whether there is a place for tools."""

    has_thinking: bool
    takes_tools: bool

    def render(
        self,
        turns: Sequence[Turn],
        style: PromptStyle,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = True,
        is_open: bool = False,
    ) -> str:
        """The prompt as text, client text in it as `protect` makes it. Raises FormatError.

        With `is_open` the last turn, an assistant's, is to be continued: the text ends where its text does.
        """


NO_TEMPLATE = "This model has no chat template, so it cannot chat: start the server with --chat-template FILE"


class NoTemplate:
    """Of a base model: texts are gone on with, and there are no conversations."""

    settings = FormatSettings()
    end_of_turn = ""
    source = ""
    has_thinking = False
    takes_tools = False
    closes_thinking = False
    toggles = False
    switch = Switch()
    variables: frozenset[str] = frozenset()

    def render(
        self,
        turns: Sequence[Turn],  # noqa: ARG002 - as all templates have it
        style: PromptStyle,  # noqa: ARG002
        tools: Sequence[Mapping[str, Any]] = (),  # noqa: ARG002
        *,
        add_generation_prompt: bool = True,  # noqa: ARG002
        is_open: bool = False,  # noqa: ARG002
    ) -> str:
        """Raises FormatError."""
        raise FormatError(NO_TEMPLATE, "messages")


class OwnTemplates:
    """`direct.jinja` and `thinking.jinja`, as EXAONE 4.0 was trained, and files that are written like them."""

    has_thinking = True
    takes_tools = True

    def __init__(self) -> None:
        loader = ChoiceLoader([FunctionLoader(_read_file), FileSystemLoader(Path(__file__).parent)])
        self._environment = Environment(loader=loader, undefined=StrictUndefined)
        self._environment.globals["cut"] = CUT  # no variable: what a template imports is then made once, not each time

    def check(self, styles: Iterable[PromptStyle]) -> None:
        """Compiles what `styles` need. Raises FormatError for what is no template, OSError for what cannot be read."""
        for style in styles:
            try:
                with compiling():
                    self._environment.get_template(_name(style))
            except TemplateNotFound as error:
                raise FormatError(f"there is no template {error}; ours are direct and thinking", "template") from error

    def render(
        self,
        turns: Sequence[Turn],
        style: PromptStyle,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = True,
        is_open: bool = False,
    ) -> str:
        """The prompt as text, with CUTs."""
        context = {
            "messages": list(map(_message, turns)),
            "tools": protect_all(list(tools)),
            "add_generation_prompt": add_generation_prompt,
            "is_open": is_open,
        }
        return rendered(self._environment.get_template(_name(style)), context)


def rendered(template: Template, context: Mapping[str, Any]) -> str:
    """What a template writes; raises FormatError for what it refuses or was not written for."""
    try:
        with timed():
            text = str(template.render(context))
    except FormatError:
        raise
    except TEMPLATE_ERRORS as error:
        reason = plain(str(error)[:LONGEST_REASON]).encode(errors="replace").decode() or type(error).__name__
        raise FormatError(f"this model's chat template does not take this: {reason}", "messages") from error
    return text


@contextmanager
def compiling() -> Iterator[None]:
    """For what compiles a template; raises FormatError, in words for the one who wrote it, for what is none.

    Beside what jinja finds, some is too deep for its parser or for Python's, to which jinja's code goes.
    """
    try:
        yield
    except TemplateSyntaxError as error:
        message = f"the chat template is no jinja template: line {error.lineno}: {error}"
        raise FormatError(message, "chat_template") from error
    except (RecursionError, MemoryError) as error:
        raise FormatError("the chat template is nested too deeply", "chat_template") from error
    except (SyntaxError, ValueError, OverflowError) as error:
        raise FormatError(f"the chat template cannot be compiled: {error}", "chat_template") from error


def _name(style: PromptStyle) -> str:
    """Of a template of ours, or the path of a file."""
    if isinstance(style.template, Path):
        return str(style.template)
    return f"{style.template or ('thinking' if style.opens_thinking else 'direct')}.jinja"


def _read_file(name: str) -> str | None:
    return Path(name).read_text(encoding="utf-8") if Path(name).is_absolute() else None


def _message(turn: Turn) -> dict[str, Any]:
    return {
        "role": turn["role"],
        "content": protect(turn["content"]),
        "reasoning_content": protect(turn["reasoning_content"]),
        "tool_calls": [
            {"name": protect(call["name"]), "arguments": protect_all(call["arguments"])} for call in turn["tool_calls"]
        ],
    }

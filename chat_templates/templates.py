"""Our own templates, the files of this folder: for the embedded model and for checkpoints that bring none.

The text comes out as the templates wrote it; which of it is a control token is `format`'s to find.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jinja2 import FileSystemLoader, StrictUndefined

from chat_templates.client_text import protect, protect_all
from chat_templates.environment import Environment
from chat_templates.messages import Turn
from chat_templates.settings import Mode

CUT = "\udc81"
"""Where a template writes it (variable `cut`), the text before and after is tokenized apart: there the prompt ends and
generation begins, or would have, so that a turn has the same ids when it is generated and when it comes back."""


class ChatTemplate(Protocol):
    """`has_thinking`: whether there is a reasoning mode; `takes_tools`: whether there is a place for tools."""

    has_thinking: bool
    takes_tools: bool

    def render(
        self,
        turns: Sequence[Turn],
        mode: Mode,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = True,
        is_open: bool = False,
    ) -> str:
        """The prompt as text, client text in it as `protect` makes it. Raises FormatError.

        With `is_open` the last turn, an assistant's, is to be continued: the text ends where its text does.
        """


class OwnTemplates:
    """`standard.jinja` and `reasoning.jinja`, as EXAONE 4.0 was trained."""

    has_thinking = True
    takes_tools = True

    def __init__(self) -> None:
        self._environment = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined)

    def render(
        self,
        turns: Sequence[Turn],
        mode: Mode,
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
            "cut": CUT,
        }
        return str(self._environment.get_template(f"{mode}.jinja").render(context))


def _message(turn: Turn) -> dict[str, Any]:
    return {
        "role": turn["role"],
        "content": protect(turn["content"]),
        "reasoning_content": protect(turn["reasoning_content"]),
        "tool_calls": [
            {"name": protect(call["name"]), "arguments": protect_all(call["arguments"])} for call in turn["tool_calls"]
        ],
    }

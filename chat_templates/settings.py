"""What a prompt is rendered by: the chat format of a family of models, and what a mode adds to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from chat_templates.tool_forms.known import FORMS

FAMILIES = {path.stem: path for path in (Path(__file__).parent / "families").glob("*.jinja")}
"""Templates of ours for families whose makers have none, by their names."""


class FormatSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[format]` table of a profile. The defaults are the commonest.

    `think` … `think_end` hold the thinking; the `after_` and `before_` texts are what the model writes next to them.
    `calls`: the form of tool calls, a name in `tool_forms.known`; None: as the checkpoint's template tells. In the form
    `hermes`, `tool_call` … `tool_call_end` hold `{"name": …, "arguments": {…}}`, `inside_tool_call` before and after.
    `hidden` are other tags, which clients never see. `tools` is the template's variable for tools.
    `template`: the name of one of ours in `families/`, for a checkpoint whose makers have an encoder and no template.
    A tag may be a token of its own, ordinary text, or both beside each other. `one_call_a_turn`: the template takes
    turns with one call each, without text beside the thinking (gpt-oss). `thinks`: whether the model can think; None:
    as its template tells. `finds_tags`: where template or tokenizer have the tags of another family, thinking is
    between those.
    """

    think: str = "<think>"
    think_end: str = "</think>"
    before_think: str = ""
    after_think: str = "\n"
    before_think_end: str = "\n"
    after_think_end: str = "\n\n"
    calls: str | None = None
    tool_call: str = "<tool_call>"
    tool_call_end: str = "</tool_call>"
    inside_tool_call: str = ""
    hidden: tuple[str, ...] = ()
    tools: str = "tools"
    template: str | None = None
    one_call_a_turn: bool = False
    thinks: bool | None = None
    finds_tags: bool = False

    def __post_init__(self) -> None:
        if self.calls is not None and self.calls not in FORMS:
            raise ValueError(f"calls is {self.calls!r}, which must be one of {', '.join(FORMS)}")
        if self.template is not None and self.template not in FAMILIES:
            raise ValueError(f"template is {self.template!r}, which must be one of {', '.join(sorted(FAMILIES))}")
        for tag in (*self.tags, self.tool_call, self.tool_call_end):
            if not tag or tag != tag.strip():
                raise ValueError(f"{tag!r} is no tag: white space around it belongs into after_think and its like")

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags but those of calls."""
        return (self.think, self.think_end, *self.hidden)


class PromptStyle(msgspec.Struct, frozen=True, kw_only=True):
    """How a mode's prompts are rendered.

    `opens_thinking`: whether the prompt ends with an open think block; if not, it leaves none open. `template` is one
    of our own by its name, or a file; None: `thinking` or `direct`, as `opens_thinking` says. A checkpoint that brings
    its own template is rendered by that, unless `template` is a file. `variables` are what a checkpoint's template
    gets; None: those by which it turns thinking on or off, as far as that can be found. `added` are further ones of
    this prompt; texts in `from_client` are text and nothing else.
    """

    opens_thinking: bool
    template: str | Path | None = None
    variables: Mapping[str, Any] | None = None
    added: Mapping[str, Any] = {}
    from_client: Mapping[str, Any] = {}


DIRECT = PromptStyle(opens_thinking=False)
"""Answers at once."""
THINKING = PromptStyle(opens_thinking=True)
"""Thinks first."""

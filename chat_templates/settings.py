"""What a family of models has of its own in the chat format: tags, the lines around them, the template's switches."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Mode = Literal["standard", "reasoning"]


class FormatSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[format]` table of a profile. The defaults are the commonest.

    `think` … `think_end` hold the thinking; the `after_` and `before_` texts are what the model writes next to them.
    `tool_call` … `tool_call_end` hold `{"name": …, "arguments": {…}}`, with `inside_tool_call` before and after it.
    `hidden` are other tags, which clients never see. `tools` is the template's variable for tools.
    A tag may be a token of its own or ordinary text. `standard` and `reasoning` are the variables that the checkpoint's
    template gets in each mode. `thinks`: whether the model has a reasoning mode; None: as its template tells.
    """

    think: str = "<think>"
    think_end: str = "</think>"
    before_think: str = ""
    after_think: str = "\n"
    before_think_end: str = "\n"
    after_think_end: str = "\n\n"
    tool_call: str = "<tool_call>"
    tool_call_end: str = "</tool_call>"
    inside_tool_call: str = ""
    hidden: tuple[str, ...] = ()
    tools: str = "tools"
    standard: dict[str, Any] = msgspec.field(default_factory=lambda: {"enable_thinking": False})
    reasoning: dict[str, Any] = msgspec.field(default_factory=lambda: {"enable_thinking": True})
    thinks: bool | None = None

    def __post_init__(self) -> None:
        for tag in self.tags:
            if not tag or tag != tag.strip():
                raise ValueError(f"{tag!r} is no tag: white space around it belongs into after_think and its like")

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags."""
        return (self.think, self.think_end, self.tool_call, self.tool_call_end, *self.hidden)

    def variables(self, mode: Mode) -> Mapping[str, Any]:
        """What the checkpoint's template gets in `mode`."""
        return self.reasoning if mode == "reasoning" else self.standard

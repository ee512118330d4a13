"""Renders a published template as the server does and as transformers does, and says where they differ."""

import copy
import json
import re
from collections.abc import Mapping
from itertools import chain, takewhile
from typing import Any

import jinja2
from msgspec.structs import replace
from transformers.utils.chat_template_utils import render_jinja_template

from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.client_text import plain
from chat_templates.errors import FormatError
from chat_templates.events import ToolCallArguments, ToolCallStart
from chat_templates.format import ChatFormat
from chat_templates.messages import check_messages, check_tools
from chat_templates.parser import make_parser
from chat_templates.tokens import Vocabulary
from server.modes.mode import Mode, Modes
from server.modes.profile import PROFILE_FOLDER, load_profile, shipped_profile, styles_of
from tests.chat_templates.foreign import tokenizer_json
from tests.published.conversations import CONVERSATIONS, NEXT, ONE, SYSTEM, TOOLS, USER, answered, result
from tests.published.templates import Published

TOKEN = re.compile(r"<[^<>\s={}'\"/][^<>\s={}'\"]{0,40}>|</[^<>\s={}'\"]{1,40}>|\[/?[A-Z_]+\]|｜DSML｜")
"""What looks like a control token in a template."""
NAMED = {"bos_token": "<BOS>", "eos_token": "<EOS>"}
SCHEMAS = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
REFUSED = "refused"
REASONS = {
    "no place for tools": "the server refuses tools where the template would leave them out",
    "one call a turn": "the template leaves out all calls but the first; the server tells them as turns with one each",
}
"""Why the server renders otherwise than transformers."""


class Compared:
    """One template, with the profile that is chosen for it."""

    def __init__(self, published: Published) -> None:
        self.source = published.path.read_text(encoding="utf-8")
        self.chosen = shipped_profile(published.model_type, self.source).stem
        self.profile = load_profile(PROFILE_FOLDER / f"{self.chosen}.toml")
        tags = {*self.profile.format.tags, *TOKEN.findall(self.source)}
        self.checkpoint = CheckpointTemplate(
            TemplateFiles(self.source, None, NAMED), self.profile.format, styles_of(self.profile.plain), tags
        )
        vocabulary = Vocabulary(
            tokenizer_json([*NAMED.values()], sorted(tags - set(NAMED.values()))),
            required=(), tags=self.checkpoint.settings.tags, template=self.checkpoint.source,
        )  # fmt: skip
        self.fmt = ChatFormat(vocabulary, self.checkpoint)
        self.modes = Modes.of(self.profile, self.fmt)

    def outcome(self) -> dict[str, Any]:
        """For results.json."""
        found = {
            (mode.name, name, opens): self._difference(mode, name, opens=opens)
            for mode in self.modes.by_name.values()
            for name in CONVERSATIONS
            for opens in (True, False)
        }
        different = {key: why for key, why in found.items() if why}
        return {
            "profile": self.chosen,
            "renderings": len(found),
            "equal": len(found) - len(different),
            "different": sorted({f"{name}: {why}" for (_, name, _), why in different.items()}),
            "thinks": self.fmt.has_thinking,
            "toggles": self.fmt.toggles and len(self.modes.by_name) > 1,
            "takes tools": self.checkpoint.takes_tools,
            "calls come back": self._calls_come_back(),
            "kept": {"text": self._kept(calls=False), "call": self._kept(calls=True)},
        }

    def _difference(self, mode: Mode, name: str, *, opens: bool) -> str:
        """Why the two differ, in words; empty where they do not."""
        messages, has_tools = CONVERSATIONS[name]
        told = {**mode.variables, **mode.levels.default}
        tools = TOOLS if has_tools else []
        ours = self._ours(mode, messages, told, tools, opens)
        theirs = self._theirs(messages, told, tools, opens)
        if ours == theirs:
            return ""
        if ours == REFUSED and has_tools and not self.checkpoint.takes_tools:
            return REASONS["no place for tools"]
        if self.profile.format.one_call_a_turn and name == "two calls":
            return REASONS["one call a turn"]
        return f"not known why: {theirs[:60]!r}, but {ours[:60]!r}"

    def _ours(self, mode: Mode, messages: Any, told: Mapping[str, Any], tools: Any, opens: bool) -> str:
        style, tools = replace(mode.style, added=told), check_tools(tools)
        try:
            return plain(self.checkpoint.render(check_messages(messages), style, tools, add_generation_prompt=opens))
        except FormatError:
            return REFUSED

    def _theirs(self, messages: Any, told: Mapping[str, Any], tools: Any, opens: bool) -> str:
        named = {self.profile.format.tools: tools, "tools": tools} if tools else {}
        try:
            rendered: Any = render_jinja_template(
                [copy.deepcopy(messages)], chat_template=self.source, add_generation_prompt=opens,
                **{"tools": None, **NAMED, **told, **named},
            )  # fmt: skip
        except (jinja2.TemplateError, TypeError, ValueError, LookupError):  # what templates raise
            return REFUSED
        return str(rendered[0][0])

    def _calls_come_back(self) -> bool | None:
        """Whether past calls, as the template writes them after a prompt, are read as these calls; None where it does
        not write them as the model would, behind its prompt.
        """
        mode = next(iter(self.modes.by_name.values()))
        asked, style = [SYSTEM, USER], mode.style_for(None, {}, {})
        try:
            prompt = self.fmt.render(asked, style, TOOLS)
            whole = self.fmt.render([*asked, answered("", "", ONE)], style, TOOLS, add_generation_prompt=False)
        except FormatError:
            return None
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False))))
        written = whole[same:]
        if "weather" not in self.fmt.decode(written) or self.fmt.has_channels:
            return None
        parser = make_parser(self.fmt, thinking_open=False, calls=True, calls_in_thinking=True, tools=SCHEMAS)
        events = parser.feed(written) + parser.finish()
        told = "".join(event.text for event in events if isinstance(event, ToolCallArguments))
        names = [event.name for event in events if isinstance(event, ToolCallStart)]
        (asked_for,) = (one["function"] for one in ONE)
        return names == [asked_for["name"]] and json.loads(told) == asked_for["arguments"]

    def _kept(self, *, calls: bool) -> int | None:
        """How many per cent of a turn, of its prompt and what the model wrote, the next prompt begins with; None where
        the template takes no such turn. The prompt, the thinking and the answer have about a third each.
        """
        if calls and not self.checkpoint.takes_tools:
            return None
        mode = [*self.modes.by_name.values()][-1]
        thought, answer = ("Let me see. " * 20 if mode.thinks else ""), "" if calls else "It rains in Köln. " * 12
        turn = answered(answer.strip(), thought.strip(), ONE if calls else None)
        asked = [SYSTEM, {**USER, "content": "Wie wird's in Köln? " * 10}]
        after = result(1, "weather", "rain") if calls else NEXT
        tools = TOOLS if calls else []
        try:
            first = self._prompt(asked, mode, tools)
            second = self._prompt([*asked, turn, after], mode, tools)
        except FormatError:
            return None
        closing = [*chain(*self.fmt.closing(""))] if mode.thinks else []
        end = self.fmt.decode(closing, show_control=True)
        written = first + thought.strip() + end + ("" if calls else answer.strip())
        same = next((i for i, (a, b) in enumerate(zip(written, second, strict=False)) if a != b), len(written))
        return round(100 * min(same, len(written)) / len(written))

    def _prompt(self, messages: Any, mode: Mode, tools: Any) -> str:
        style = mode.style_for(None, {}, {})
        return self.fmt.decode(self.fmt.render(messages, style, tools), show_control=True)

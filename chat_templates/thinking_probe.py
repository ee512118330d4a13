"""What a checkpoint's template and tokenizer say of thinking, where no profile does: tags, switch and levels.

Found by looking for the tags that model families have, and by trying the names that they give to the switch.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from chat_templates.settings import FormatSettings

EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")
PLAIN_EFFORTS = ("low", "medium", "high")
"""OpenAI's first three: what a template is taken to know that names no levels itself."""


class ThinkTags(NamedTuple):
    """The tags of thinking in some family, and what its models write next to them."""

    think: str
    think_end: str
    after_think: str = "\n"
    before_think_end: str = "\n"
    after_think_end: str = "\n\n"


THINK_TAGS = (
    ThinkTags("<think>", "</think>"),
    ThinkTags("[THINK]", "[/THINK]", "", "", ""),  # Magistral, Ministral 3 Reasoning, Mistral Small 4
    ThinkTags("<seed:think>", "</seed:think>", "", "", ""),  # Seed-OSS
    ThinkTags("<|channel>", "<channel|>", "thought\n", "\n", ""),  # Gemma 4
    ThinkTags("<|START_THINKING|>", "<|END_THINKING|>", "", "", ""),  # Command R7B, Command A Reasoning
    ThinkTags("<|inner_prefix|>", "<|inner_suffix|>", "", "", ""),  # Apertus
    ThinkTags("<|begin_of_thought|>", "<|end_of_thought|>", "\n\n", "\n\n", "\n\n"),  # OpenThinker, Sky-T1
    ThinkTags("<|channel|>analysis<|message|>", "<|end|>", "", "", "<|start|>assistant<|channel|>final<|message|>"),
    ThinkTags("<|think|>", "<|end|>", "", "", "<|begin|>assistant<|content|>"),  # Solar Open
    ThinkTags("<|open|>think<|sep|>", "<|close|>think<|sep|>", "", "", "<|open|>response<|sep|>"),  # Kimi K3
    ThinkTags("<|think|>", "<|/think|>", "", "", ""),
    ThinkTags("<think:opensource>", "</think:opensource>", "", "", ""),  # Hy3
    ThinkTags("<mm:think>", "</mm:think>", "", "", ""),  # MiniMax-M3
    ThinkTags("<thinking>", "</thinking>"),
    ThinkTags("<reasoning>", "</reasoning>"),
    ThinkTags("◁think▷", "◁/think▷", "", "", ""),  # Kimi-VL
)


SHARED_ENDS = frozenset({"<|end|>"})
"""End tags that end turns too, so that alone they say nothing of thinking."""


class Candidate(NamedTuple):
    """A name that some family gives to the switch; values that turn thinking on, ABSENT among them, and off.

    `is_level`: it says how hard to think, so that it is a switch only where the generation prompt tells.
    """

    name: str
    on: tuple[Any, ...]
    off: tuple[Any, ...]
    is_level: bool = False


ABSENT = object()
CANDIDATES = (
    Candidate("enable_thinking", (True,), (False,)),
    Candidate("thinking", (True, "on", "enabled"), (False, "off", "disabled")),
    Candidate("thinking_mode", ("thinking", "enabled", "on", "think"), ("chat", "disabled", "off", "no_think")),
    Candidate("reasoning", (True, "on"), (False, "off")),
    Candidate("enable_reasoning", (True,), (False,)),
    Candidate("reasoning_mode", ("/think", "think", "on"), ("/no_think", "no_think", "off")),
    Candidate("thinking_budget", (ABSENT, -1, 1024), (0,), is_level=True),
    Candidate("reasoning_effort", (ABSENT, "high", "medium"), ("none", "no_think", "minimal"), is_level=True),
    Candidate("reasoning_strength", (ABSENT, "high", "medium"), ("none", "off", "minimal"), is_level=True),
    Candidate("think", (True,), (False,)),
)
LEVELS = ("reasoning_effort", "reasoning_strength", "thinking_effort")


@dataclass(frozen=True)
class Switch:
    """The variables that turn a template's thinking `on` and `off`; `name` is empty where none does.

    `levels`: for each effort that the template knows, the variable that says so.
    """

    name: str = ""
    on: Mapping[str, Any] = field(default_factory=lambda: {"enable_thinking": True})
    off: Mapping[str, Any] = field(default_factory=lambda: {"enable_thinking": False})
    levels: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def variables(self, *, thinks: bool) -> Mapping[str, Any]:
        """Those of a mode."""
        return self.on if thinks else self.off


_Pair = tuple[int, str, dict[str, Any], dict[str, Any]]
"""How well a candidate does, its name, and its variables on and off."""
Rendering = Callable[[Mapping[str, Any]], str | None]
"""From variables to the prompt that a template makes with them; None where it refuses them."""


def with_found_tags(settings: FormatSettings, source: str, tokens: Collection[str]) -> FormatSettings:
    """The settings with the tags that are in the template, else in the tokenizer; as they are where none is."""
    in_template = [tags for tags in THINK_TAGS if tags.think in source and tags.think_end in source]
    ends_in_template = [tags for tags in THINK_TAGS if tags.think_end in source and tags.think_end not in SHARED_ENDS]
    in_tokenizer = [tags for tags in THINK_TAGS if tags.think in tokens and tags.think_end in tokens]
    found = next(iter([*in_template, *ends_in_template, *in_tokenizer]), None)
    if found is None or found.think == settings.think:
        return settings
    return msgspec.structs.replace(settings, **found._asdict())


def is_open(text: str, tags: FormatSettings) -> bool:
    """Whether a think block is open at the end of a text; in a rendered one only the template's own tags count."""
    return text.rfind(tags.think) > text.rfind(tags.think_end)


def is_closed(text: str, tags: FormatSettings) -> bool:
    """Whether a rendered text ends with a closed think block."""
    _, end, after = text.rpartition(tags.think_end)
    for hidden in tags.hidden:
        after = after.replace(hidden, "")
    return bool(end) and not after.strip()


def find_switch(variables: Collection[str], source: str, render: Rendering, tags: FormatSettings) -> Switch:
    """The switch that makes a difference where it should, of those among `variables`."""
    found = [pair for one in CANDIDATES if one.name in variables and (pair := _pair(one, render, tags))]
    levels = next((_levels(name, source, render) for name in LEVELS if name in variables), {})
    if not found:
        return Switch(levels=levels)
    _, name, on, off = max(found, key=itemgetter(0))  # the first of those that are as good
    return Switch(name, on, off, {effort: given for effort, given in levels.items() if given != off})


def _pair(one: Candidate, render: Rendering, tags: FormatSettings) -> _Pair | None:
    """None where it is no switch."""
    best: _Pair | None = None
    for on in one.on:
        for off in one.off:
            given = {} if on is ABSENT else {one.name: on}
            thinking, direct = render(given), render({one.name: off})
            if thinking is None or direct is None or thinking == direct:
                continue
            at_end = is_open(thinking, tags) != is_open(direct, tags) or (
                is_closed(direct, tags) and not is_closed(thinking, tags)
            )
            if (at_end or not one.is_level) and (best is None or at_end > best[0]):
                best = int(at_end), one.name, given, {one.name: off}
    return best


def _levels(name: str, source: str, render: Rendering) -> dict[str, dict[str, Any]]:
    """Those that the template names, else the plain ones; without those that it refuses."""
    named = [effort for effort in EFFORTS if f'"{effort}"' in source or f"'{effort}'" in source]
    return {effort: {name: effort} for effort in named or PLAIN_EFFORTS if render({name: effort}) is not None}

"""A mode as it is served: its profile, with all that can be known before a request comes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from chat_templates.errors import FormatError
from chat_templates.format import NO_TOKEN, ChatFormat
from chat_templates.messages import Message
from chat_templates.settings import PromptStyle
from chat_templates.thinking_probe import EFFORTS
from server.modes.profile import AutoMode, DirectMode, Profile, ThinkingMode
from server.modes.thinking import UNBOUND, Budget, Trying

TRIED_MESSAGES: list[Message] = [{"role": "user", "content": "Is 1 + 1 = 2, naïvely?\n\tYes: 日本 👋🏽"}]
"""With which it is found out whether a template takes a mode at all."""
NOT_THINKING = "this model does not think"
NO_TAGS = "this model's tags of thinking are no tokens, so that none can say whether it thinks"


@dataclass(frozen=True)
class ThinkClosing:
    """The token ids that close a thinking for the model: one of `wrap_ups`, `tag`, and the `separator` behind it.

    `wrap_ups` stand in the order in which they are to be taken, the longest first; the last is the shortest that the
    format allows. `trying`: how the thinking may end before.
    """

    wrap_ups: tuple[tuple[int, ...], ...]
    tag: tuple[int, ...]
    separator: tuple[int, ...]
    trying: Trying | None = None

    @classmethod
    def of(cls, mode: ThinkingMode, fmt: ChatFormat) -> "ThinkClosing":
        """The closing of a mode, in the tokens of a model."""
        closings = [fmt.closing(text) for text in mode.wrap_ups]
        words = tuple(tuple(closing.last_words) for closing in closings)
        rule = mode.early_end
        trying = None if rule is None else Trying(rule, tuple(fmt.encode_text(rule.lead)), fmt.detokenizer)
        return cls(words, tuple(closings[0].tag), tuple(closings[0].separator), trying)


@dataclass(frozen=True)
class TemplateLevels:
    """The variables by which a template is told how hard to think: those `of` each effort that it knows, those where
    nothing is asked, and the one that a budget in tokens goes into; empty where there is none.
    """

    of: Mapping[str, Mapping[str, Any]]
    default: Mapping[str, Any]
    of_tokens: str = ""

    def told(self, budget: Budget | None) -> Mapping[str, Any]:
        """The variables for a request with this budget. An effort that the template does not know is told as the next
        one above that it knows, else as the highest.
        """
        if budget is None:
            return self.default
        if isinstance(budget.value, int):
            tells = self.of_tokens and budget.value != UNBOUND
            return {self.of_tokens: budget.value} if tells else self.default
        known = [effort for effort in EFFORTS if effort in self.of]
        if not known:
            return self.default
        above = [effort for effort in known if EFFORTS.index(effort) >= EFFORTS.index(budget.value)]
        return self.of[above[0] if above else known[-1]]


NO_LEVELS = TemplateLevels({}, {})


@dataclass(frozen=True)
class Mode:
    """One mode of a served model. `closing`: how its thinking is closed; None for a mode that does not think.

    `variables` are those by which a checkpoint's template knows the mode. `auto`: it chooses between two others; all
    else is then as in the one that thinks.
    """

    name: str
    profile: DirectMode | ThinkingMode
    style: PromptStyle
    closing: ThinkClosing | None
    variables: Mapping[str, Any] = field(default_factory=dict)
    levels: TemplateLevels = NO_LEVELS
    auto: "Auto | None" = None

    @property
    def thinks(self) -> bool:
        """Whether its requests think before they answer, or may."""
        return self.closing is not None

    @property
    def kind(self) -> Literal["direct", "thinking", "auto"]:
        """As the profile says it."""
        if self.auto is not None:
            return "auto"
        return "thinking" if self.thinks else "direct"

    @property
    def plain(self) -> "Mode":
        """The mode in which all else is: itself, or the one that thinks."""
        return self if self.auto is None else self.auto.thinking

    @property
    def begins_in(self) -> "Mode":
        """The mode that its choices begin in: itself, or the one that drafts."""
        return self if self.auto is None else self.auto.direct

    def style_for(self, budget: Budget | None, added: Mapping[str, Any], from_client: Mapping[str, Any]) -> PromptStyle:
        """How a request's prompt is rendered: with the level of its budget, and further variables of the template."""
        told = self.levels.told(budget)
        if not (told or added or from_client):
            return self.style
        return msgspec.structs.replace(self.style, added={**added, **told}, from_client=from_client)


@dataclass(frozen=True)
class Auto:
    """The two modes between which one of kind `auto` chooses, and by what `rule`."""

    rule: AutoMode
    direct: Mode
    thinking: Mode


@dataclass(frozen=True)
class Modes:
    """The modes that a model has, of those of its profile, in the profile's order. `on` and `off` are what peers'
    switches mean, and `adaptive` what leaves it to the server; None where the model has no such mode. `lacking` are
    those that it has not, each with the reason.

    `switches` are the variables that make a template's modes, and `variables` those that clients may set beside them.
    `given` are the operator's, of every request that sets no other, and `budget` is what they say of the thinking.
    """

    by_name: dict[str, Mode]
    default: Mode
    on: Mode | None
    off: Mode | None
    lacking: Mapping[str, str]
    switches: frozenset[str] = frozenset()
    variables: frozenset[str] = frozenset()
    given: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget | None = None
    adaptive: Mode | None = None

    @classmethod
    def of(cls, profile: Profile, fmt: ChatFormat) -> "Modes":
        """Those of `profile` that a model with the format `fmt` has: one that does not think has direct modes only, and
        what the chat template refuses is none.

        Raises ValueError where none is left.
        """
        lacking = _lacking(profile, fmt)
        plain = {name: _mode(name, mode, fmt) for name, mode in profile.plain.items() if name not in lacking}
        if not plain:
            raise ValueError(f"{'; '.join(dict.fromkeys(lacking.values()))}, and the profile has no other mode")
        autos = {name: _auto(name, mode, plain) for name, mode in profile.autos.items() if name not in lacking}
        made = {name: {**plain, **autos}[name] for name in profile.modes if name not in lacking}
        default = made.get(profile.default_mode) or next(iter(made.values()))
        on, off = made.get(profile.dialects.on or ""), made.get(profile.dialects.off or "")
        switches = frozenset(name for mode in made.values() for name in mode.variables)
        allowed = fmt.variables if profile.client_variables is None else frozenset(profile.client_variables)
        adaptive = next(iter(autos.values()), on)
        return cls(made, default, on, off, lacking, switches, allowed - switches, adaptive=adaptive)


def _lacking(profile: Profile, fmt: ChatFormat) -> dict[str, str]:
    """The modes that the model cannot be in, each with the reason."""
    thinking = {} if fmt.has_thinking else {name: NOT_THINKING for name, mode in profile.plain.items() if mode.thinks}
    left = {name: mode.style for name, mode in profile.plain.items() if name not in thinking}
    refused = {name: reason for name, style in left.items() if (reason := refusal(fmt, style))}
    # A template that takes none of them does not take the conversation that was tried.
    lacking = thinking if len(refused) == len(left) else thinking | refused
    for name, auto in profile.autos.items():
        parts = [lacking[part] for part in (auto.direct, auto.thinking) if part in lacking]
        reason = next(iter(parts), _cannot_choose(auto, fmt))
        lacking = lacking | ({name: reason} if reason else {})
    return lacking


def _cannot_choose(rule: AutoMode, fmt: ChatFormat) -> str:
    """Why the model cannot be asked to choose itself; empty where it can, or is not."""
    return NO_TAGS if rule.asks_model and NO_TOKEN in (fmt.think_id, fmt.think_end_id) else ""


def refusal(fmt: ChatFormat, style: PromptStyle) -> str:
    """What a chat template says where it refuses a style; else empty."""
    try:
        fmt.render(TRIED_MESSAGES, style)
    except FormatError as error:
        return error.message
    return ""


def _mode(name: str, profile: DirectMode | ThinkingMode, fmt: ChatFormat) -> Mode:
    style = profile.style
    variables = fmt.switch.variables(thinks=profile.thinks) if style.variables is None else style.variables
    if isinstance(profile, DirectMode):
        return Mode(name, profile, style, None, variables)
    return Mode(name, profile, style, ThinkClosing.of(profile, fmt), variables, _levels(profile, fmt))


def _auto(name: str, rule: AutoMode, plain: Mapping[str, Mode]) -> Mode:
    direct, thinking = plain[rule.direct], plain[rule.thinking]
    told = rule.template_variables
    style = thinking.style if told is None else msgspec.structs.replace(thinking.style, variables=told)
    return replace(thinking, name=name, style=style, variables=told or {}, auto=Auto(rule, direct, thinking))


def _levels(profile: ThinkingMode, fmt: ChatFormat) -> TemplateLevels:
    levels = profile.levels
    if levels is None:
        return TemplateLevels(fmt.switch.levels, {}) if profile.template_variables is None else NO_LEVELS
    of: dict[str, dict[str, Any]] = {effort: {levels.variable: value} for effort, value in levels.of.items()}
    default = {} if levels.default is None else of[levels.default]
    return TemplateLevels(of, default, levels.variable if levels.takes_tokens else "")

"""What each reasoning mode means, read from a TOML profile: kind, prompt style, sampling, token budgets.

A profile has any number of modes; code asks a mode's kind, never its name. Which mode a request is in is decided in
`server.modes.resolve`; how budgets are spent in `server.modes.limits` and `server.core.generate`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from chat_templates.settings import FormatSettings, PromptStyle
from engine.sampling import Count, Share, TokenSampling
from server.cli_errors import UsageError
from server.modes.confidence import Signal
from server.modes.early_end import EarlyEnd
from server.modes.repetition import Repetition
from server.modes.thinking import Effort

PROFILE_FOLDER = Path(__file__).parent / "profiles"
GENERAL = PROFILE_FOLDER / "general.toml"
TEMPLATE_FILE = ".jinja"
"""How the name of a mode's own template file ends."""

Tokens = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Priority = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
DraftTokens = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Threshold = Annotated[float, msgspec.Meta(le=0.0)]
ModeName = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9_-]{0,31}$")]


class ModeLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many of a mode's choices may run, and how many may wait and how long; None: as the server says."""

    running: Annotated[int, msgspec.Meta(ge=1)] | None = None
    waiting: Count | None = None
    wait_seconds: Annotated[float, msgspec.Meta(gt=0)] | None = None


class ModeProfile(TokenSampling, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """What all kinds of modes have. The sampling is that of requests that name none.

    `template` is one of our own (`direct`, `thinking`) or a jinja file, from the profile's folder; None: the
    checkpoint's own, or ours for the kind. `template_variables` are what a checkpoint's template gets; None: those by
    which it turns thinking on or off, as far as that can be found. `default_max_tokens`: where the client names no
    limit; None: what the context leaves, within `max_tokens_limit`.
    """

    template: str | None = None
    template_variables: dict[str, Any] | None = None
    default_max_tokens: Tokens | None = None
    max_tokens_limit: Tokens
    priority: Priority = 0
    limits: ModeLimits = ModeLimits()

    @property
    def thinks(self) -> bool:
        """Whether its requests think before they answer."""
        return isinstance(self, ThinkingMode)

    @property
    def style(self) -> PromptStyle:
        """How its prompts are rendered."""
        template = self.template
        return PromptStyle(
            opens_thinking=self.thinks,
            template=Path(template) if template is not None and template.endswith(TEMPLATE_FILE) else template,
            variables=self.template_variables,
        )


class DirectMode(ModeProfile, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="direct"):
    """A mode that answers at once."""


class EffortShares(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For each `reasoning_effort`, the share of a request's token limit that is its thinking budget."""

    minimal: Share
    low: Share
    medium: Share
    high: Share
    xhigh: Share
    max: Share = 1.0

    def __post_init__(self) -> None:
        shares = msgspec.structs.astuple(self)
        if list(shares) != sorted(set(shares)):
            raise ValueError("the shares must grow from minimal to max")


class Levels(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a family's template is told how hard to think: its `variable`, and the value `of` each effort that it knows.

    An effort that it does not know is told as the next one above that it knows, else the highest. `default` is that of
    requests that name none; None: the template is told nothing. `takes_tokens`: a budget in tokens is told as it is.
    """

    variable: str
    of: dict[Effort, Any]
    default: Effort | None = None
    takes_tokens: bool = False

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of: there must be an effort that the template knows")
        if self.default is not None and self.default not in self.of:
            raise ValueError(f"default is {self.default!r}, which must be one of {', '.join(self.of)}")


class ThinkingMode(ModeProfile, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="thinking"):
    """A mode that thinks first. `thinking_budget` None: what the token limit leaves beside the answer reserve.

    `short_wrap_up` takes the place of `wrap_up` where that is more than half of a budget; nothing where both are. A
    thought that goes round in circles, by the rule of `repetition`, is closed as a spent budget is; so is one whose
    answer is known, by that of `early_end`, where there is one.
    `answer` has the sampling fields by which the answer is drawn where it differs from the thinking. `levels` None: as
    far as they can be found in the template, where `template_variables` are to be found too; else none.
    """

    levels: Levels | None = None
    thinking_budget: Count | None = None
    answer_reserve: Tokens
    wrap_up: str
    short_wrap_up: str = ""
    repetition: Repetition = Repetition()
    early_end: EarlyEnd | None = None
    effort_shares: EffortShares = EffortShares(minimal=0.1, low=0.2, medium=0.5, high=0.8, xhigh=0.95)  # OpenRouter's
    answer: dict[str, Any] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            msgspec.convert(self.answer, _AnswerSampling)
        except msgspec.ValidationError as error:
            raise ValueError(f"answer: {error}") from None

    @property
    def wrap_ups(self) -> tuple[str, str, str]:
        """What may be said when a budget is spent, the longest first."""
        return self.wrap_up, self.short_wrap_up, ""


class _AnswerSampling(TokenSampling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `ThinkingMode.answer` may hold."""


class AutoMode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="auto", tag_field="kind"):
    """A mode that answers in one of two others, `direct` and `thinking` by their names, as the model's confidence says.

    The direct one begins, unseen. When it has drawn `draft_tokens`, or has ended before, its draft is kept where the
    `signal` of these tokens (by its name, or the weights of several) is at least `threshold`; else the thinking one
    answers. Sampling, limits and priority are those two modes' own. `calibrated_for`: the model, by the name that it is
    served under, on which the threshold was measured.

    Of a family whose models choose themselves, `template_variables` are those by which its template asks them to, in
    place of a threshold. The tag that the model begins with says which of the two modes answers.
    """

    direct: ModeName
    thinking: ModeName
    signal: Signal = "sum"
    draft_tokens: DraftTokens = 32
    threshold: Threshold | None = None
    calibrated_for: str = ""
    template_variables: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.asks_model and (self.threshold is not None or self.calibrated_for):
            raise ValueError("template_variables leave the choice to the model, so there is no threshold")
        if not self.asks_model and self.threshold is None:
            raise ValueError("threshold is missing, or template_variables by which the model is asked to choose")

    @property
    def asks_model(self) -> bool:
        """Whether the model chooses itself, and no draft is weighed."""
        return self.template_variables is not None


AnyMode = DirectMode | ThinkingMode | AutoMode


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The checkpoints that a shipped profile is for: `model_type` in config.json, and texts in their chat template.

    `template_lacks` are texts that it has not. `has_template` False: those that bring no chat template, and so are
    written to in our own.
    """

    model_types: tuple[str, ...]
    template_has: tuple[str, ...] = ()
    template_lacks: tuple[str, ...] = ()
    has_template: bool = True

    def fits(self, model_type: str, template: str) -> bool:
        """Whether a checkpoint is one of them."""
        if model_type not in self.model_types or (template and not self.has_template):
            return False
        return all(text in template for text in self.template_has) and not any(
            text in template for text in self.template_lacks
        )

    @property
    def strictness(self) -> int:
        """How much it asks of a template."""
        return len(self.template_has) + len(self.template_lacks) + (not self.has_template)


class Family(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a shipped profile's knowledge comes from, for `docs/families.md`: the `models` it was written for, the
    `sources` of switch, tags and sampling, and in words what of it was `checked` and what was `unchecked`.
    """

    models: str
    sources: tuple[str, ...] = ()
    checked: str
    unchecked: str = ""


class Dialects(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The modes that peers' switches mean, which know only thinking `on` and `off` (`enable_thinking` and its like)."""

    on: ModeName | None = None
    off: ModeName | None = None


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The modes by their names, in the order in which they are listed, and the one of requests that name none.

    `format` is for checkpoints with their own chat template. `client_variables` are those of its variables that
    clients may set; None: all that the template has. `sampling_of_checkpoint`: where the checkpoint names a sampling,
    in its generation_config.json, that takes the place of the modes'. `recalls_thinking`: the family goes on from the
    thinking of its tool turns, which the server fills in where a client left it out.
    """

    family: Family | None = None
    match: Match | None = None
    client_variables: tuple[str, ...] | None = None
    sampling_of_checkpoint: bool = False
    recalls_thinking: bool = False
    format: FormatSettings = FormatSettings()
    default_mode: ModeName
    dialects: Dialects
    modes: dict[ModeName, AnyMode]

    def __post_init__(self) -> None:
        self._check("default_mode", self.default_mode, (DirectMode, ThinkingMode, AutoMode))
        self._check("dialects.on", self.dialects.on, ThinkingMode)
        self._check("dialects.off", self.dialects.off, DirectMode)
        for name, mode in self.autos.items():
            self._check(f"modes.{name}.direct", mode.direct, DirectMode)
            self._check(f"modes.{name}.thinking", mode.thinking, ThinkingMode)

    @property
    def plain(self) -> dict[ModeName, DirectMode | ThinkingMode]:
        """The modes that answer themselves."""
        return {name: mode for name, mode in self.modes.items() if not isinstance(mode, AutoMode)}

    @property
    def autos(self) -> dict[ModeName, AutoMode]:
        """Those that choose between two of them."""
        return {name: mode for name, mode in self.modes.items() if isinstance(mode, AutoMode)}

    def _check(self, field: str, name: str | None, kind: type | tuple[type, ...]) -> None:
        """Raises ValueError where `name` is no mode of that kind."""
        fitting = [known for known, mode in self.modes.items() if isinstance(mode, kind)]
        if name is not None and name not in fitting:
            raise ValueError(f"{field} is {name!r}, which must be one of {', '.join(fitting) or 'no mode at all'}")


def shipped_profile(model_type: str, template: str) -> Path:
    """The shipped profile for a checkpoint, of several the one that asks most of its template; else the general one."""
    found = GENERAL, -1
    for path in sorted(PROFILE_FOLDER.glob("*.toml")):
        match = load_profile(path).match
        if match is not None and match.fits(model_type, template) and match.strictness > found[1]:
            found = path, match.strictness
    return found[0]


def load_profile(path: Path) -> Profile:
    """Reads a profile; raises UsageError, in one line, when it cannot be read or a value does not fit."""
    try:
        profile = msgspec.toml.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise UsageError(f"cannot read the profile {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"profile {path}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"profile {path}: nested too deeply") from error
    plain = {name: _with_file(mode, path.parent) for name, mode in profile.plain.items()}
    return msgspec.structs.replace(profile, modes={**profile.modes, **plain})


def _with_file(mode: DirectMode | ThinkingMode, folder: Path) -> DirectMode | ThinkingMode:
    """The mode with the path of its template file, if it has one, made absolute."""
    if mode.template is None or not mode.template.endswith(TEMPLATE_FILE):
        return mode
    return msgspec.structs.replace(mode, template=str((folder / mode.template).resolve()))


def styles_of(modes: Mapping[str, ModeProfile]) -> list[PromptStyle]:
    """How the modes' prompts are rendered."""
    return [mode.style for mode in modes.values()]

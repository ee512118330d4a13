"""What each reasoning mode means, read from a TOML profile: template, sampling, token budgets.

Which mode a request is in is decided in `server.modes.resolve`; how budgets are spent in `server.modes.limits` and
`server.core.generate`.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from chat_templates.settings import FormatSettings, Mode
from server.cli_errors import UsageError

MODES: tuple[Mode, ...] = get_args(Mode)

PROFILE_FOLDER = Path(__file__).parent / "profiles"
GENERAL = PROFILE_FOLDER / "general.toml"

Count = Annotated[int, msgspec.Meta(ge=0)]
Tokens = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Temperature = Annotated[float, msgspec.Meta(ge=0.0, le=2.0)]
TopP = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Repetition = Annotated[float, msgspec.Meta(ge=0.01, le=10.0)]
Penalty = Annotated[float, msgspec.Meta(ge=-2.0, le=2.0)]


class ModeProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The defaults and limits of one mode; sampling names and ranges as in vLLM's SamplingParams."""

    temperature: Temperature = 0.0
    top_p: TopP = 1.0
    top_k: Count = 0
    min_p: Share = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Repetition = 1.0
    default_max_tokens: Tokens
    max_tokens_limit: Tokens
    priority: int = 0


class StandardProfile(ModeProfile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The mode that answers at once."""

    template: Literal["standard"] = "standard"


class EffortShares(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For each `reasoning_effort`, the share of a request's token limit that is its thinking budget."""

    minimal: Share
    low: Share
    medium: Share
    high: Share
    xhigh: Share

    def __post_init__(self) -> None:
        shares = msgspec.structs.astuple(self)
        if list(shares) != sorted(set(shares)):
            raise ValueError("the shares must grow from minimal to xhigh")


class AnswerSampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the answer is drawn where that differs from the thinking; None: alike."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: Count | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Repetition | None = None


class ThinkingProfile(ModeProfile, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The mode that thinks first. `thinking_budget` None: what the token limit leaves beside the answer reserve.

    `short_wrap_up` is said instead of `wrap_up` where that takes more than half of a budget; nothing where both do.
    """

    template: Literal["reasoning"] = "reasoning"
    thinking_budget: Count | None = None
    answer_reserve: Tokens
    wrap_up: str
    short_wrap_up: str = ""
    effort_shares: EffortShares = EffortShares(minimal=0.1, low=0.2, medium=0.5, high=0.8, xhigh=0.95)  # OpenRouter's
    answer: AnswerSampling | None = None

    @property
    def wrap_ups(self) -> tuple[str, str, str]:
        """What may be said when a budget is spent, the longest first."""
        return self.wrap_up, self.short_wrap_up, ""


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The checkpoints that a shipped profile is for: `model_type` in config.json, and texts in their chat template."""

    model_types: tuple[str, ...]
    template_has: tuple[str, ...] = ()

    def fits(self, model_type: str, template: str) -> bool:
        """Whether a checkpoint is one of them."""
        return model_type in self.model_types and all(text in template for text in self.template_has)


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Both modes, and the one of requests that name none. `format` is for checkpoints with their own chat template."""

    match: Match | None = None
    format: FormatSettings = FormatSettings()
    default_mode: Mode
    standard: StandardProfile
    reasoning: ThinkingProfile

    def of(self, mode: Mode) -> StandardProfile | ThinkingProfile:
        """The part that describes `mode`."""
        return self.reasoning if mode == "reasoning" else self.standard


def shipped_profile(model_type: str, template: str) -> Path:
    """The shipped profile for a checkpoint, of several the one that asks most of its template; else the general one."""
    found = GENERAL, -1
    for path in sorted(PROFILE_FOLDER.glob("*.toml")):
        match = load_profile(path).match
        if match is not None and match.fits(model_type, template) and len(match.template_has) > found[1]:
            found = path, len(match.template_has)
    return found[0]


def load_profile(path: Path) -> Profile:
    """Reads a profile; raises UsageError, in one line, when it cannot be read or a value does not fit."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise UsageError(f"cannot read the profile {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"profile {path}: {error}") from error

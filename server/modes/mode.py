"""A mode as it is served: its profile, with all that can be known before a request comes."""

from dataclasses import dataclass

from chat_templates.format import ChatFormat
from chat_templates.settings import PromptStyle
from server.modes.profile import DirectMode, Profile, ThinkingMode


@dataclass(frozen=True)
class ThinkClosing:
    """The token ids that close a thinking for the model: one of `wrap_ups`, `tag`, and the `separator` behind it.

    `wrap_ups` stand in the order in which they are to be taken, the longest first; the last is the shortest that the
    format allows.
    """

    wrap_ups: tuple[tuple[int, ...], ...]
    tag: tuple[int, ...]
    separator: tuple[int, ...]

    @classmethod
    def of(cls, mode: ThinkingMode, fmt: ChatFormat) -> "ThinkClosing":
        """The closing of a mode, in the tokens of a model."""
        closings = [fmt.closing(text) for text in mode.wrap_ups]
        words = tuple(tuple(closing.last_words) for closing in closings)
        return cls(words, tuple(closings[0].tag), tuple(closings[0].separator))


@dataclass(frozen=True)
class Mode:
    """One mode of a served model. `closing`: how its thinking is closed; None for a mode that does not think."""

    name: str
    profile: DirectMode | ThinkingMode
    style: PromptStyle
    closing: ThinkClosing | None

    @property
    def thinks(self) -> bool:
        """Whether its requests think before they answer."""
        return self.closing is not None


@dataclass(frozen=True)
class Modes:
    """The modes that a model has, of those of its profile, in the profile's order. `on` and `off` are what peers'
    switches mean; None where the model has no such mode. `lacking` are those that would think, where it cannot.
    """

    by_name: dict[str, Mode]
    default: Mode
    on: Mode | None
    off: Mode | None
    lacking: frozenset[str]

    @classmethod
    def of(cls, profile: Profile, fmt: ChatFormat) -> "Modes":
        """Those of `profile` that a model with the format `fmt` has: one that does not think has direct modes only.

        Raises ValueError where none is left.
        """
        made = {
            name: _mode(name, mode, fmt) for name, mode in profile.modes.items() if fmt.has_thinking or not mode.thinks
        }
        if not made:
            raise ValueError("this model does not think, and the profile has no mode of kind direct")
        default = made.get(profile.default_mode) or next(iter(made.values()))
        on, off = made.get(profile.dialects.on or ""), made.get(profile.dialects.off or "")
        return cls(made, default, on, off, frozenset(profile.modes) - frozenset(made))


def _mode(name: str, profile: DirectMode | ThinkingMode, fmt: ChatFormat) -> Mode:
    closing = ThinkClosing.of(profile, fmt) if isinstance(profile, ThinkingMode) else None
    return Mode(name, profile, profile.style, closing)

"""The two modes of the shipped profiles, in tests of what takes no profile, or one mode of it."""

from typing import Literal

from chat_templates.settings import DIRECT, THINKING, PromptStyle
from server.modes.profile import DirectMode, Profile, ThinkingMode

Mode = Literal["standard", "reasoning"]
STYLES: dict[Mode, PromptStyle] = {"standard": DIRECT, "reasoning": THINKING}


def direct_of(profile: Profile) -> DirectMode:
    """The mode of a shipped profile that answers at once."""
    mode = profile.modes["standard"]
    assert isinstance(mode, DirectMode)
    return mode


def thinking_of(profile: Profile) -> ThinkingMode:
    """The mode of a shipped profile that thinks first."""
    mode = profile.modes["reasoning"]
    assert isinstance(mode, ThinkingMode)
    return mode

"""The two modes that are trained, and how the prompts of each are rendered."""

from typing import Literal

from chat_templates.settings import DIRECT, THINKING, PromptStyle

Mode = Literal["standard", "reasoning"]
STYLES: dict[Mode, PromptStyle] = {"standard": DIRECT, "reasoning": THINKING}

"""What a request asks about its mode and its thinking, and the plan that comes of it. Types only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, NamedTuple

from chat_templates.detokenizer import Detokenizer
from server.modes.early_end import EarlyEnd
from server.modes.repetition import Repetition

Effort = Literal["minimal", "low", "medium", "high", "xhigh", "max"]
UNBOUND = -1
"""As a number of tokens: the token limit alone bounds the thinking."""


class Left(Enum):
    """What a request wants that leaves it to the server whether the model thinks."""

    ADAPTIVE = "adaptive"


ADAPTIVE: Final = Left.ADAPTIVE
Wanted = str | bool | Left


class ModeRequest(NamedTuple):
    """`field` asks for the mode called `wanted`; with True and False, for any that thinks or that does not; with
    ADAPTIVE, for the one that chooses, or else one that thinks.
    """

    field: str
    wanted: Wanted


class Budget(NamedTuple):
    """`field` bounds the thinking, by a number of tokens (UNBOUND: not at all) or by an effort."""

    field: str
    value: int | Effort


class ModeWish(NamedTuple):
    """All that a request asks about its mode, and all that bounds its thinking. What contradicts itself is refused."""

    requests: Sequence[ModeRequest] = ()
    budgets: Sequence[Budget] = ()


class Trying(NamedTuple):
    """How answers are tried along a thought: the `rule`, its `lead` in tokens, and what reads the thought's text."""

    rule: EarlyEnd
    lead: tuple[int, ...]
    detokenizer: Callable[[], Detokenizer]


@dataclass(frozen=True)
class ThinkingPlan:
    """How long the model may think and what is said for it when that is spent.

    `max_tokens` counts the model's own thinking; with `wrap_up` it is the budget. `closing` is the end tag with what
    follows it in the template, its `separator`. `bound_by` tells whether a budget or the token limit set `max_tokens`.
    A thought that repeats itself as `repetition` says is closed at once, and so is one whose answer `trying` finds.
    """

    max_tokens: int
    wrap_up: tuple[int, ...]
    closing: tuple[int, ...]
    bound_by: Literal["budget", "length"]
    separator: tuple[int, ...] = ()
    repetition: Repetition | None = None
    trying: Trying | None = None

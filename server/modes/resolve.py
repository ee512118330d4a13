"""Which mode a request is in: the `reasoning_mode` field, the model aliases, or the profile's default.

All ways to ask for a mode become a `Choice` each, so that a contradiction can name both fields.
"""

from collections.abc import Sequence
from typing import NamedTuple

from chat_templates.settings import Mode
from server.errors import BadRequestError, UnknownModelError
from server.modes.profile import MODES


class Choice(NamedTuple):
    """`field` asked for `mode`."""

    field: str
    mode: Mode


def model_names(served: str, modes: Sequence[Mode] = MODES) -> list[str]:
    """The names under which a model is listed: its own, then one alias per mode that it has."""
    return [served, *(f"{served}:{mode}" for mode in modes)]


def mode_of_model(name: str, served: str, modes: Sequence[Mode] = MODES) -> Choice | None:
    """The mode that a model name stands for, None for the plain name; raises UnknownModelError for any other."""
    if name == served:
        return None
    for mode in modes:
        if name == f"{served}:{mode}":
            return Choice("model", mode)
    raise UnknownModelError(name, served)


def mode_of_field(value: str | None) -> Choice | None:
    """What `reasoning_mode` asks for; raises BadRequestError listing the valid values."""
    if value is None:
        return None
    for mode in MODES:
        if value == mode:
            return Choice("reasoning_mode", mode)
    valid = " or ".join(f'"{mode}"' for mode in MODES)
    raise BadRequestError(f'reasoning_mode must be {valid}, not "{value[:40]}".', param="reasoning_mode")


def resolve_mode(choices: list[Choice | None], default: Mode, modes: Sequence[Mode] = MODES) -> Mode:
    """The mode that all choices agree on, or `default`.

    Raises BadRequestError naming two fields that contradict each other, or one that asks for a mode that the model does
    not have.
    """
    made = [choice for choice in choices if choice is not None]
    for choice in made[1:]:
        if choice.mode != made[0].mode:
            raise BadRequestError(
                f"{made[0].field} asks for {made[0].mode} and {choice.field} for {choice.mode}: send only one of them.",
                param=choice.field,
            )
    if not made:
        return default
    if made[0].mode not in modes:
        field, mode = made[0]
        raise BadRequestError(f"{field}: this model does not think, so it has no {mode} mode.", param=field)
    return made[0].mode

"""What a request, or the operator, has the chat template told: sorted into mode, thinking budget and the rest.

A variable by which the template knows a mode asks for that mode, so that prompt and mode cannot contradict each other.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from server.errors import BadRequestError
from server.modes.mode import Modes
from server.modes.thinking import UNBOUND, Budget, Effort, ModeRequest, ModeWish

OPTION = "--default-chat-template-kwargs"
EFFORT, TOKENS = "reasoning_effort", "thinking_budget"
ON_OR_OFF = ("enable_thinking", "thinking")
"""Understood of every model, whatever its template calls them."""
NO_THINKING = "none"


def sorted_variables(variables: Mapping[str, Any], modes: Modes, field: str) -> tuple[ModeWish, dict[str, Any]]:
    """What `variables`, which came in `field`, ask of the mode and its thinking; and the rest, for the template.

    Raises BadRequestError for one that this model's template is not told.
    """
    requests, budgets, rest = [], [], {}
    for name, value in variables.items():
        path = f"{field}.{name}"
        if value is None:
            continue
        if name in ON_OR_OFF and isinstance(value, bool):
            requests.append(ModeRequest(path, value))
        elif (mode := _mode_told(name, value, modes)) is not None:
            requests.append(ModeRequest(path, mode))
        elif (budget := _budget(name, value, path)) is not None:
            budgets += [] if budget.value == 0 else [budget]
            requests.append(ModeRequest(path, budget.value != 0))
        elif name == EFFORT and value == NO_THINKING:
            requests.append(ModeRequest(path, False))
        elif name in modes.variables:
            rest[name] = value
        else:
            raise BadRequestError(f"{path}: {_allowed(name, modes)}.", param=path)
    return ModeWish(requests, budgets), rest


def with_defaults(modes: Modes, variables: Mapping[str, Any]) -> Modes:
    """The modes where the operator has the template told `variables`; raises ValueError for what it is not told."""
    try:
        wish, rest = sorted_variables(variables, modes, OPTION)
    except BadRequestError as error:
        raise ValueError(error.message) from None
    default = modes.default
    for field, wanted in wish.requests:
        mode = modes.by_name[wanted] if isinstance(wanted, str) else modes.on if wanted else modes.off
        if mode is None:
            raise ValueError(f"{field}: this model {'does not think' if wanted else 'always thinks'}")
        default = mode
    return replace(modes, default=default, given=rest, budget=next(iter(wish.budgets), None))


def _mode_told(name: str, value: Any, modes: Modes) -> str | bool | None:
    """The mode that the template knows by this value; of several, whether they think."""
    found = [mode for mode in modes.by_name.values() if name in mode.variables and _same(mode.variables[name], value)]
    if len(found) == 1:
        return found[0].name
    return found[0].thinks if found else None


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def _budget(name: str, value: Any, path: str) -> Budget | None:
    if name == EFFORT and value in get_args(Effort):
        return Budget(path, value)
    if name == TOKENS and isinstance(value, int) and not isinstance(value, bool) and value >= UNBOUND:
        return Budget(path, value)
    return None


def _allowed(name: str, modes: Modes) -> str:
    """What is wrong with a variable, or with its value, and what would be right."""
    if name in ON_OR_OFF:
        return "must be true or false"
    if name == TOKENS:
        return f"must be a number of tokens, {UNBOUND} for no bound"
    of_modes = [mode.variables[name] for mode in modes.by_name.values() if name in mode.variables]
    if name == EFFORT or of_modes:
        efforts = [NO_THINKING, *get_args(Effort)] if name == EFFORT else []
        return f"must be one of {', '.join(map(str, dict.fromkeys([*of_modes, *efforts])))}"
    known = [*ON_OR_OFF, EFFORT, TOKENS, *sorted(modes.switches | modes.variables)]
    return f"this model's chat template is not told this; it can be told {', '.join(dict.fromkeys(known))}"

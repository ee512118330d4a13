"""Which mode a request is in: the `reasoning_mode` field, the model aliases, a peer's switch, or the default.

All ways to ask for a mode become a `ModeRequest` each, so that a contradiction can name both fields.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from server.errors import BadRequestError, UnknownModelError
from server.modes.mode import Mode, Modes
from server.modes.thinking import ADAPTIVE, ModeRequest


def model_names(served: str, modes: Modes) -> dict[str, Mode]:
    """The names under which a model is listed, its own first and then one alias per mode, with the mode of each."""
    return {served: modes.default, **{f"{served}:{name}": mode for name, mode in modes.by_name.items()}}


def check_names(models: Sequence[str], modes: Modes) -> None:
    """Raises ValueError where two models would have a name in common."""
    listed = Counter(alias for model in models for alias in model_names(model, modes))
    twice = next((name for name, times in listed.items() if times > 1), None)
    if twice is not None:
        raise ValueError(f"--lora-modules: {twice!r} would be the name of two models")


def mode_of_model(name: str, served: str, modes: Modes, field: str = "model") -> ModeRequest | None:
    """What a model name in `field` asks for, nothing if it is the plain name; UnknownModelError for any other."""
    if name == served:
        return None
    mode = model_names(served, modes).get(name)
    if mode is None:
        raise UnknownModelError(name, served, field)
    return ModeRequest(field, mode.name)


def resolve_mode(requests: Iterable[ModeRequest | None], modes: Modes) -> Mode:
    """The mode that all `requests` agree on, or the default.

    A name is more exact than a switch: beside the name of any mode that thinks, or may, a switch to thinking says the
    same. So does one beside what leaves the choice to the server.
    Raises BadRequestError naming two fields that contradict each other, or one that asks for what the model has not.
    """
    made = [request for request in requests if request is not None]
    found = [(request.field, _wanted(request, modes)) for request in made]
    names = [index for index, request in enumerate(made) if isinstance(request.wanted, str)]
    left = [index for index, request in enumerate(made) if request.wanted is ADAPTIVE]
    first = next(iter([*names, *left]), 0)
    for index in range(len(found)):
        if not _agree(found[first], found[index], exactly=index in names):
            _refuse(found[min(first, index)], found[max(first, index)])
    return found[first][1] if found else modes.default


def _agree(one: tuple[str, Mode], other: tuple[str, Mode], *, exactly: bool) -> bool:
    return one[1] is other[1] or (not exactly and one[1].thinks == other[1].thinks)


def _refuse(one: tuple[str, Mode], other: tuple[str, Mode]) -> None:
    (field, mode), (other_field, other_mode) = one, other
    raise BadRequestError(
        f"{field} asks for {mode.name} and {other_field} for {other_mode.name}: send only one of them.",
        param=other_field,
    )


def _wanted(request: ModeRequest, modes: Modes) -> Mode:
    """Raises BadRequestError where the model has no such mode."""
    field, wanted = request
    if not isinstance(wanted, str):
        mode = modes.adaptive if wanted is ADAPTIVE else modes.on if wanted else modes.off
        if mode is None:
            can = "does not think" if wanted else "always thinks"
            raise BadRequestError(f"{field}: this model {can}; its modes: {', '.join(modes.by_name)}.", param=field)
        return mode
    mode = modes.by_name.get(wanted)
    if wanted in modes.lacking:
        raise BadRequestError(f"{field}: {modes.lacking[wanted]}, so it has no {wanted} mode.", param=field)
    if mode is None:
        always = "" if any(not mode.thinks for mode in modes.by_name.values()) else " This model always thinks."
        message = f'{field} must be {_listed(list(modes.by_name))}, not "{wanted[:40]}".{always}'
        raise BadRequestError(message, param=field)
    return mode


def _listed(names: Sequence[str]) -> str:
    *rest, last = [f'"{name}"' for name in names]
    return f"{', '.join(rest)} or {last}" if rest else last

"""What a fast path needs of vLLM's inside, and whether the installed release has it.

A fast path is code of ours that takes the place of vLLM's own. It names what it stands on as data, so that a release
that moved one of these names turns the path off with a reason. The tables are in `model_impl/cpu/__init__.py` and
`engine/vllm_internals/contract.py`.
"""

import functools
import inspect
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import CodeType
from typing import Any, NamedTuple


class PrivateName(NamedTuple):
    """A name that vLLM does not document: `name` is `module:object`, the object possibly dotted.

    `attributes`: what is read or written of the object or of its instances. `parameters`: the names of its first
    parameters, where it is called or overridden; others behind them must have defaults.
    """

    name: str
    attributes: tuple[str, ...] = ()
    parameters: tuple[str, ...] | None = None

    @property
    def dotted(self) -> str:
        """The name as one writes it in prose."""
        return self.name.replace(":", ".")


class FastPath(NamedTuple):
    """A path by its name in words, and all that it needs of vLLM's inside."""

    name: str
    needs: tuple[PrivateName, ...]


class Verdict(NamedTuple):
    """Whether a path is taken, and why or why not. `unexpected`: off because vLLM has changed, by nobody's choice."""

    on: bool
    reason: str
    unexpected: bool = False


def missing(needs: Iterable[PrivateName]) -> str | None:
    """The first of `needs` that the installed vLLM lacks, in words; None where it has all. Imports their modules."""
    return next(filter(None, map(_missing, needs)), None)


def verdict_of_names(path: FastPath) -> Verdict | None:
    """Why a path cannot be taken with the installed vLLM; None where its names are all there."""
    reason = missing(path.needs)
    return None if reason is None else Verdict(False, reason, unexpected=True)


def _missing(needed: PrivateName) -> str | None:
    module, _, path = needed.name.partition(":")
    try:
        found: Any = functools.reduce(getattr, path.split("."), import_module(module))
    except (ImportError, AttributeError):
        return f"vLLM {_version()} has no {needed.dotted}"
    if needed.parameters is not None and not _takes(found, needed.parameters):
        expected = ", ".join(needed.parameters)
        return f"{needed.dotted} of vLLM {_version()} takes {inspect.signature(found)}, not ({expected})"
    lost = next((name for name in needed.attributes if not _knows(found, name)), None)
    return None if lost is None else f"{needed.dotted} of vLLM {_version()} has no {lost}"


def _takes(function: Any, parameters: tuple[str, ...]) -> bool:
    taken = list(inspect.signature(function).parameters.values())
    behind = taken[len(parameters) :]
    return tuple(one.name for one in taken[: len(parameters)]) == parameters and all(
        one.default is not one.empty or one.kind in {one.VAR_POSITIONAL, one.VAR_KEYWORD} for one in behind
    )


def _knows(found: Any, attribute: str) -> bool:
    """Whether an object has the attribute, or its code mentions it: what instances have is set in methods."""
    if hasattr(found, attribute):
        return True
    owners = found.__mro__ if inspect.isclass(found) else ()
    declared = any(attribute in inspect.get_annotations(owner) for owner in owners)
    members = [member for owner in owners for member in vars(owner).values()] or [found]
    return declared or any(attribute in code.co_names for member in members for code in _code(member))


def _code(member: Any) -> Iterator[CodeType]:
    """The code of a function, method or property, whatever decorates it."""
    function: Any = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    if isinstance(code := getattr(inspect.unwrap(function), "__code__", None), CodeType):
        yield code


def _version() -> str:
    return str(getattr(import_module("vllm"), "__version__", "of an unknown version"))

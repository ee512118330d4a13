"""What all bodies share: strict fields, and errors that name the field at fault or the one that was meant."""

import json
import re
from collections.abc import Container, Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from server.errors import BadRequestError

INT64 = 2**63 - 1
MAX_NAME = 40  # no misspelling of an extension is longer
MAX_CHECKED = 64  # unknown fields looked at, so that thousands of them cost nothing
MAX_PATH = 200
_PYDANTIC = re.compile("^Value error, | after validation")  # its own words in messages for clients
_SHOULD = re.compile("^[A-Z][a-z]+ should")
_OBJECT = re.compile("a valid dictionary( or instance of .*)?$")


class Fields(BaseModel):
    """Base of all bodies and their parts: types are strict, numbers finite, unknown fields ignored."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True
    )


Body = TypeVar("Body", bound=Fields)


def checked(kind: type[Body], fields: dict[str, Any]) -> Body:
    """The body that `fields` are; raises BadRequestError, with `param` naming the first field at fault."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _bad_field(error.errors(include_url=False, include_input=False)[0]) from None


def tag_of(value: object) -> str | None:
    """The tag of a field that is a string, a list or an object; errors leave what is in brackets out of paths."""
    if isinstance(value, str):
        return "(text)"
    if isinstance(value, dict):
        return "(object)"
    return "(list)" if isinstance(value, list) else None


def read_object(content: bytes, known: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of a JSON body, of which none that is `known` may come twice; raises BadRequestError."""
    try:
        fields = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"The body is not valid JSON: {error.msg} (character {error.pos}).") from None
    if not isinstance(fields, dict):
        raise BadRequestError("The body must be a JSON object.")
    if any(content.count(f'"{name}"'.encode()) > 1 for name in known if name in fields):  # nearly never
        _refuse_repeated(content)
    return fields


def _refuse_repeated(content: bytes) -> None:
    """Raises BadRequestError for a field that comes twice: which of them would count is the parser's whim."""
    try:
        pairs = json.loads(content, object_pairs_hook=list, parse_int=str, parse_float=str)
    except RecursionError:
        raise BadRequestError("The body is nested too deep.") from None
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise BadRequestError(f"{name[:MAX_NAME]} comes twice.", param=name[:MAX_NAME])
        seen.add(name)


def refuse_misspelt(fields: Iterable[str], known: Container[str], extensions: Iterable[str]) -> None:
    """Raises BadRequestError for a slip of an extension's name: ignoring it would silently change what is asked."""
    unknown = [name for name in fields if name not in known and len(name) <= MAX_NAME]
    if not unknown:
        return
    plain = {extension.replace("_", ""): extension for extension in extensions}
    for name in unknown[:MAX_CHECKED]:
        meant = _meant_extension(name, plain)
        if meant is not None:
            raise BadRequestError(f'There is no field "{name}". Did you mean "{meant}"?', param=name)


def _meant_extension(name: str, plain: dict[str, str]) -> str | None:
    """The extension that `name` is a slip of: other case or separators, or a letter or two beside it."""
    letters = name.lower().replace("_", "").replace("-", "")
    if letters in plain:
        return plain[letters]
    long = [word for word in plain if len(word) > len("topk")]
    matches = get_close_matches(letters, long, n=1, cutoff=0.84)
    return plain[matches[0]] if matches else None


def _bad_field(error: ErrorDetails) -> BadRequestError:
    param = _path([step for step in error["loc"] if not _is_tag(step)])
    problem = "is required" if error["type"] == "missing" else _PYDANTIC.sub("", error["msg"])
    return BadRequestError(f"{param}: {_OBJECT.sub('an object', _SHOULD.sub('must', problem))}.", param=param)


def _is_tag(step: str | int) -> bool:
    return isinstance(step, str) and step.startswith("(") and step.endswith(")")


def _path(steps: list[str | int]) -> str:
    """`messages[0].content`, as clients write it; cut where a client's own key makes it long."""
    path = ""
    for step in steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path[:MAX_PATH]

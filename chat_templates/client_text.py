r"""Text in which what clients wrote and what a template wrote stay apart, whatever the template does with it.

Every character of client text below U+0100 is stood for by a lone surrogate, which no client text can hold (it arrives
as UTF-8, and `replace_surrogates` turns what JSON escapes smuggle in into U+FFFD). So no control token's spelling can
be found in it, nor be put together of a client's characters and a template's. White space, `"`, `\` and control
characters stay as they are, for those that trim or quote text; no spelling consists of these alone.

A template meets such text as `Text`, which searches, splits, trims and compares as if it were plain: to it
`content.split("</think>")` does what it says. One character stands for one, so that places are the same in both.
"""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, SupportsIndex

from chat_templates.tokens import replace_surrogates

_FIRST = 0xD800  # stands for U+0000
_TABLE = "".join(
    chr(code) if chr(code).isspace() or chr(code) in '"\\' or code < 0x20 else chr(_FIRST + code)
    for code in range(0x100)
)
_BACK = codecs.charmap_build(_TABLE)  # read by C code: a megabyte takes a few milliseconds
_LOW = re.compile(f"[{re.escape(''.join(chr(code) for code in range(0x100) if chr(code) not in _TABLE))}][\x00-\xff]*")
_STANDING = re.compile(f"[\ud800-\ud8ff][{re.escape(_TABLE)}]*")


def protect(text: str) -> "Text":
    """A client's text, as a template shall meet it."""
    return Text(_stand_in(replace_surrogates(text)))


def protect_all(value: Any) -> Any:
    """The same for every string in a JSON value, keys included."""
    match value:
        case str():
            return protect(value)
        case list():
            return [protect_all(item) for item in value]
        case dict():
            return {protect(key): protect_all(item) for key, item in value.items()}
    return value


def plain(text: str) -> str:
    """What the text says, whoever wrote it."""
    return str(text) if str.isascii(text) else str(_STANDING.sub(_original, text))


def plain_all(value: Any) -> Any:
    """The same for every string in a JSON value, keys included."""
    match value:
        case str():
            return plain(value)
        case list() | tuple():
            return [plain_all(item) for item in value]
        case dict():
            return {plain_all(key): plain_all(item) for key, item in value.items()}
    return value


def _stand_in(text: str) -> str:
    return _LOW.sub(lambda run: codecs.charmap_decode(run[0].encode("latin-1"), "strict", _TABLE)[0], text)


def _original(run: re.Match[str]) -> str:
    return codecs.charmap_encode(run[0], "strict", _BACK)[0].decode("latin-1")


class Text(str):
    """Text of clients and of a template, mixed; what a template asks of a string is answered as of plain text."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Self]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> Self:
        return type(self)(super().__getitem__(key))

    def __add__(self, other: str) -> Self:
        return type(self)(super().__add__(other))

    def __radd__(self, other: str) -> Self:
        return type(self)(str.__add__(other, self))

    def __mul__(self, times: SupportsIndex) -> Self:
        return type(self)(super().__mul__(times))

    def __rmul__(self, times: SupportsIndex) -> Self:
        return self * times

    def __mod__(self, values: Any) -> Self:
        return type(self)(super().__mod__(values))

    def __rmod__(self, pattern: str) -> Self:
        return type(self)(str.__mod__(pattern, self))

    def __repr__(self) -> str:
        """Also within lists and dicts: all of it becomes a client's text."""
        return _stand_in(repr(plain(self)))

    def __int__(self) -> int:
        return int(plain(self))

    def __float__(self) -> float:
        return float(plain(self))

    def strip(self, chars: str | None = None) -> Self:
        """As `str.strip`, like all that follow."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None) -> Self:
        """From the left."""
        return self[len(self) - len(plain(self).lstrip(_plain_argument(chars))) :]

    def rstrip(self, chars: str | None = None) -> Self:
        """From the right."""
        return self[: len(plain(self).rstrip(_plain_argument(chars)))]

    def removeprefix(self, prefix: str) -> Self:
        """Without `prefix`, if it begins with that."""
        found = self.startswith(prefix)
        return self[len(prefix) :] if found else self

    def removesuffix(self, suffix: str) -> Self:
        """Without `suffix`, if it ends with that."""
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Self]:  # type: ignore[override]
        """From the left."""
        if sep is None:  # white space stands for itself
            return [type(self)(part) for part in super().split(None, maxsplit)]
        return self._cut(plain(self).split(plain(sep), maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Self]:  # type: ignore[override]
        """From the right."""
        if sep is None:
            return [type(self)(part) for part in super().rsplit(None, maxsplit)]
        return self._cut(plain(self).rsplit(plain(sep), maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[Self]:  # type: ignore[override]
        """At line ends, which stand for themselves."""
        return [type(self)(line) for line in super().splitlines(keepends)]

    def partition(self, sep: str) -> tuple[Self, Self, Self]:
        """At the first `sep`."""
        before, found, after = plain(self).partition(plain(sep))
        return self[: len(before)], self[len(before) : len(before) + len(found)], self[len(self) - len(after) :]

    def rpartition(self, sep: str) -> tuple[Self, Self, Self]:
        """At the last `sep`."""
        before, found, after = plain(self).rpartition(plain(sep))
        return self[: len(before)], self[len(before) : len(before) + len(found)], self[len(self) - len(after) :]

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> Self:
        """Each `old` by `new`."""
        if not old:
            return type(self)(super().replace(old, new, count))
        return type(self)(str.join(new, self.split(old, count)))

    def join(self, iterable: Iterable[str]) -> Self:
        """The texts with this one between them."""
        return type(self)(super().join(iterable))

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> "Encoded":
        """The plain text's bytes."""
        return Encoded(plain(self).encode(encoding, errors))

    def zfill(self, width: SupportsIndex) -> Self:
        """With zeros after the sign."""
        padded = plain(self).zfill(width)
        zeros = "0" * (len(padded) - len(self))
        signs = len(padded) - len(padded.lstrip("+-")) if zeros else 0
        return self[:signs] + zeros + self[signs:]

    def _cut(self, parts: list[str], separator: str) -> list[Self]:
        """The pieces of this text at the places of `parts` in the plain one."""
        pieces, start = [], 0
        for part in parts:
            pieces.append(self[start : start + len(part)])
            start += len(part) + len(separator)
        return pieces


class Encoded(bytes):
    """A client's text in bytes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return _stand_in(super().__repr__())

    def __str__(self) -> str:
        return repr(self)

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return Encoded(found) if isinstance(found, bytes) else found


def _plain_argument(value: Any) -> Any:
    """An argument of a method of str."""
    match value:
        case str():
            return plain(value)
        case tuple():
            return tuple(map(_plain_argument, value))
    return value


def _asked_of_plain(name: str) -> Callable[..., Any]:
    ask = getattr(str, name)

    def method(self: Text, *arguments: Any) -> Any:
        return ask(plain(self), *map(_plain_argument, arguments))

    return method


def _changed_as_plain(name: str) -> Callable[..., Text]:
    """All of it becomes a client's text: a template has no reason to do that to a control token."""
    change = getattr(str, name)

    def method(self: Text) -> Text:
        return protect(change(plain(self)))

    return method


for _name in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__contains__"):
    setattr(Text, _name, _asked_of_plain(_name))
for _name in ("find", "rfind", "index", "rindex", "count", "startswith", "endswith"):
    setattr(Text, _name, _asked_of_plain(_name))
for _name in (
    "isalpha",
    "isalnum",
    "isdigit",
    "isnumeric",
    "isdecimal",
    "isupper",
    "islower",
    "istitle",
    "isascii",
    "isprintable",
    "isidentifier",
):
    setattr(Text, _name, _asked_of_plain(_name))
for _name in ("lower", "upper", "title", "capitalize", "casefold", "swapcase"):
    setattr(Text, _name, _changed_as_plain(_name))

"""The jinja environment in which all templates run, ours and those of checkpoints: what they may call, and `Text`.

Follows transformers' (`utils/chat_template_utils.py`): sandboxed, blocks trimmed, `raise_exception`, `strftime_now`,
`tojson` without HTML, `{% generation %}`. Beside that, every string that is put together here is `Text` again, so that
what clients wrote stays apart from what the template wrote however the template joins them.
"""

import json
from collections.abc import Callable, Iterable, MutableMapping
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chat_templates import limits
from chat_templates.client_text import Encoded, Text, plain, plain_all, protect

_READING = ("int", "wordcount")
_WRITING = (
    *("capitalize", "lower", "title", "upper", "e", "escape", "forceescape", "striptags", "truncate", "urlencode"),
    *("urlize", "wordwrap", "xmlattr"),
)
"""Filters that look at single characters: they get plain text, and what they write is all a client's."""


class _Code(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja's name
        """`a ~ b`, which jinja joins by a function of its own, by the environment's."""
        self.write("concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def visit_For(self, node: nodes.For, frame: Frame) -> None:  # noqa: N802
        """A loop, each turn of which begins with a look at the clock."""
        node.body.insert(0, nodes.ExprStmt(nodes.EnvironmentAttribute("turn", lineno=node.lineno), lineno=node.lineno))
        super().visit_For(node, frame)


class _Generation(Extension):
    """`{% generation %}` marks what is learnt in training; here it is what is in it."""

    tags = {"generation"}  # noqa: RUF012 - as jinja has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Environment(ImmutableSandboxedEnvironment):
    """See above; `options` are jinja's."""

    code_generator_class = _Code
    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(extensions=["jinja2.ext.loopcontrols", _Generation], auto_reload=False, **options)
        looking = (*_READING, *_WRITING)
        self.filters = {
            name: _of_plain(filter_) if name in looking else _giving_text(filter_)
            for name, filter_ in self.filters.items()
        }
        self.tests |= {
            "lower": _of_plain(lambda value: str(value).islower()),
            "upper": _of_plain(lambda value: str(value).isupper()),
        }
        self.filters |= {"tojson": _to_json, "replace": _replace, "format": _format}
        self.globals |= {"raise_exception": _raise, "strftime_now": _now}

    def make_globals(self, d: MutableMapping[str, Any] | None) -> MutableMapping[str, Any]:
        """As jinja's, but copied, not chained: every rendering copies them once more, and from a dict that is quick."""
        return {**self.globals, **(d or {})}

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """How jinja joins what a template writes."""
        parts = list(parts)
        if sum(map(len, parts)) > limits.MOST_CHARACTERS:
            raise OverflowError("the text is too long")
        return Text("".join(parts))

    @property
    def turn(self) -> None:
        """Every turn of a loop asks for it. Raises TooSlowError."""
        limits.check_time()

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Also joins, if the function is a string's method."""
        limits.check_time()
        limits.check_arguments(args)
        limits.check_form(_form_of(function))
        value = super().call(context, function, *args, **kwargs)
        of_bytes = isinstance(getattr(function, "__self__", None), bytes)
        return limits.check_size(_of_client(value) if of_bytes else _as_text(value))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """What the sandbox lets through of `intercepted_binops`."""
        limits.check_product(operator, left, right)
        return limits.check_size(super().call_binop(context, operator, left, right))


def _form_of(function: Any) -> str:
    """The string whose `format` is called; empty for any other function. The sandbox wraps that method."""
    method = getattr(function, "__wrapped__", function)
    owner = getattr(method, "__self__", None)
    return owner if isinstance(owner, str) and getattr(method, "__name__", "").startswith("format") else ""


def _as_text(value: Any) -> Any:
    return Text(value) if isinstance(value, str) else value


def _of_client(value: Any) -> Any:
    """What a method made of a client's bytes."""
    match value:
        case str():
            return protect(value)
        case bytes():
            return Encoded(value)
        case list() | tuple():
            return list(map(_of_client, value))
    return value


def _of_plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that is given plain text."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        limits.check_arguments((*args, *kwargs.values()))
        value = function(*map(plain_all, args), **{name: plain_all(value) for name, value in kwargs.items()})
        return limits.check_size(protect(str(value)) if isinstance(value, str) else value)

    return wrapped


def _giving_text(filter_: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(filter_)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        limits.check_arguments((*args, *kwargs.values()))
        return limits.check_size(_as_text(filter_(*args, **kwargs)))

    return wrapped


def _format(form: str, *values: Any, **named: Any) -> Text:
    limits.check_form(form)
    return Text(str(form) % (named or values))


def _replace(text: Any, old: str, new: str, count: int | None = None) -> Text:
    return Text(text).replace(old, new, -1 if count is None else count)


def _to_json(value: Any, ensure_ascii: bool = False, **layout: Any) -> Text:
    """JSON as Python spaces it, non-ASCII kept, nothing escaped for HTML (jinja's own filter does all three)."""
    if ensure_ascii:
        return protect(json.dumps(plain_all(value), **layout))
    return Text(json.dumps(value, ensure_ascii=False, **layout))


def _now(form: str) -> str:
    """The server's own time, as transformers has it."""
    return datetime.now().strftime(plain(form))


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)

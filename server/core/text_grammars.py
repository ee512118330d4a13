"""Grammars of a tool's one text, as Lark or as a pattern: the same for the text as the model writes it in a call.

Within a JSON string a quotation mark, a backslash and control characters are escaped, in one way each. Where a form of
calls has no quotes the text stands as it is, up to a tag: then each character is a lexeme, for the library's lexer
takes the longest one, and would take the tag for more of the text. Patterns are read as Python reads them; what it does
not know is refused.
"""

import json
import re
import warnings
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from server.core.grammar_jobs import TextGrammar

# Python's own reading of patterns, which has no public name and no types.
codes: Any = import_module("re._constants")
patterns: Any = import_module("re._parser")

COMMON = {
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[a-fA-F0-9]",
    "INT": "[0-9]+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+",
    "FLOAT": r"[0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "SIGNED_FLOAT": r"[+-]?([0-9]+[eE][+-]?[0-9]+|([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?)",
    "NUMBER": r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "SIGNED_NUMBER": r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "ESCAPED_STRING": r'"([^"\\\n]|\\.)*"',
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[a-zA-Z]",
    "WORD": "[a-zA-Z]+",
    "CNAME": "[_a-zA-Z][_a-zA-Z0-9]*",
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(\r?\n)+",
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"//[^\n]*",
    "SQL_COMMENT": r"--[^\n]*",
}
"""Lark's own terminals, as `%import common.NAME` has them."""
ESCAPED = '"\\' + "".join(map(chr, range(0x20)))
RAW = r'[^"\\\x00-\x1f]'
IGNORED = "ignored_text"
START = "start_of_text"
TOKEN = re.compile(
    r"""
    (?P<blank>\s+|//[^\n]*|\#[^\n]*)
    | (?P<range>"(?:\\.|[^"\\])"\s*\.\.\s*"(?:\\.|[^"\\])")
    | (?P<string>"(?:\\.|[^"\\\n])*")(?P<fold>i?)
    | /(?P<regex>(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+)/(?P<flags>[imslux]*)
    | %import\s+common(?:\.(?P<one>\w+)(?:\s*->\s*(?P<alias>\w+))?|\s*\((?P<several>[\w\s,]+)\))
    | (?P<refused>%\w*|<|~|&)
    | (?P<terminal>\b_?[A-Z][A-Z0-9_]*\b)(?:\.[0-9]+(?=\s*:))?
    | (?P<other>\w+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
STATEMENT = re.compile(r"^(?=[ \t]*(?:%|[?!]?\w+(?:\.\d+)?(?:\[[^\]\n]*\])?[ \t]*:))", re.MULTILINE)
TERMINAL = re.compile(r"\s*(?:_?[A-Z][A-Z0-9_]*(?:\.\d+)?\s*:|%import)")
HEAD = re.compile(r"\s*[?!]?\w+(?:\.\d+)?(?:\[[^\]\n]*\])?[ \t]*:")
IGNORE = re.compile(r"\s*%ignore\b(.*)", re.DOTALL)
FLAGS = {"i": re.IGNORECASE, "s": re.DOTALL, "u": re.UNICODE, "m": re.MULTILINE, "x": re.VERBOSE}


def within_json(grammar: TextGrammar) -> str:
    """The grammar of what `json.dumps` makes of the texts of `grammar`, without its quotation marks; ValueError."""
    return _Writing(in_json=True).grammar(grammar)


def as_it_is(grammar: TextGrammar) -> str:
    """The grammar of the texts themselves, which may be followed by anything; raises ValueError."""
    return _Writing(in_json=False).grammar(grammar)


class _Writing:
    """How the texts are written. All terminals become rules, for the lexer never goes back: after a text that may go on
    with an escaped quotation mark it could not see an escaped end of line.
    """

    def __init__(self, *, in_json: bool) -> None:
        self._in_json = in_json
        self._ignores = False

    def grammar(self, grammar: TextGrammar) -> str:
        """Raises ValueError."""
        if grammar.kind == "regex":
            return f"start: {self._pattern(grammar.definition, '')}"
        statements = STATEMENT.split(grammar.definition)
        ignored = [match[1] for one in statements if (match := IGNORE.match(one))]
        self._ignores = bool(ignored)
        made = [self._statement(one) for one in statements if not IGNORE.match(one)]
        if ignored:
            made += [
                f"{IGNORED}: ({' | '.join(self._tokens(one.strip(), spaced=False) for one in ignored)})*",
                f"start: {IGNORED} {START}",
            ]
        return "\n".join(made)

    def _statement(self, statement: str) -> str:
        head = HEAD.match(statement)
        start = "" if head is None else head[0]
        name = self._tokens(start, spaced=False)
        return name + self._tokens(statement[len(start) :], spaced=self._ignores and not TERMINAL.match(statement))

    def _tokens(self, text: str, *, spaced: bool) -> str:
        """`spaced`: what is ignored may follow each text."""
        return "".join(self._token(token, spaced=spaced) for token in TOKEN.finditer(text))

    def _token(self, token: re.Match[str], *, spaced: bool) -> str:
        kind, made = token.lastgroup, token[0]
        if kind == "refused":
            raise ValueError(f"{made} is not supported in the Lark grammar of a tool")
        if token["one"]:
            return self._common(token["one"], token["alias"] or token["one"])
        if kind == "several":
            names = re.findall(r"\w+", token["several"])
            return "\n".join(self._common(name, name) for name in names)
        if kind == "blank":
            return "\n" if "\n" in made else " "
        if kind == "other":
            return START if made == "start" and self._ignores else made
        text = self._terminal(token)
        return f"({text} {IGNORED})" if spaced else text

    def _terminal(self, token: re.Match[str]) -> str:
        """A text, a pattern or the name of either."""
        match token.lastgroup:
            case "range":
                first, last = (re.escape(_text(text)) for text in re.findall(r'"(?:\\.|[^"\\])"', token["range"]))
                return self._pattern(f"[{first}-{last}]", "")
            case "fold":
                text = _text(token["string"])
                return self._pattern(re.escape(text), token["fold"]) if text else '""'
            case "flags":
                return self._pattern(token["regex"].replace(r"\/", "/"), token["flags"])
        return _named(token["terminal"])

    def _common(self, name: str, alias: str) -> str:
        if name not in COMMON:
            raise ValueError(f"common.{name[:64]} is not supported in the Lark grammar of a tool")
        return f"{_named(alias)}: {self._pattern(COMMON[name], '')}"

    def _pattern(self, pattern: str, flags: str) -> str:
        nodes = _parsed(pattern, flags)
        return f"({self._expression(list(nodes), nodes.state.flags)})"

    def _expression(self, nodes: list[Any], flags: int) -> str:
        """What may be one lexeme in patterns, and all else by itself."""
        parts: list[str] = []
        plain: list[Any] = []
        for node in nodes:
            if self._in_json and "\\\\" not in _all([node], flags).replace(RAW, ""):
                plain.append(node)
                continue
            if plain:
                parts.append(f"/{_all(plain, flags)}/")
                plain = []
            parts.append(self._in_rules(node[0], node[1], flags))
        if plain:
            parts.append(f"/{_all(plain, flags)}/")
        return " ".join(parts) or '""'

    def _in_rules(self, code: Any, value: Any, flags: int) -> str:
        match code:
            case codes.BRANCH:
                return f"({' | '.join(self._expression(list(branch), flags) for branch in value[1])})"
            case codes.SUBPATTERN:
                _, added, removed, inner = value
                return f"({self._expression(list(inner), (flags | added) & ~removed)})"
            case codes.MAX_REPEAT | codes.MIN_REPEAT:
                least, most, inner = value
                return f"({self._expression(list(inner), flags)}){_times(least, most)}"
        if not self._in_json:
            return _character(code, value, flags)
        escaped, own = _ways(code, value, flags)
        ways = [json.dumps(one) for one in escaped] + ([f"/{own}/"] if own else [])
        return f"({' | '.join(ways)})"


def _times(least: int, most: Any) -> str:
    if most is codes.MAXREPEAT and least <= 1:
        return "+" if least else "*"
    return f"{{{least},{'' if most is codes.MAXREPEAT else most}}}"


def _named(terminal: str) -> str:
    return f"terminal_{terminal.lower()}"


def _text(literal: str) -> str:
    try:
        return str(json.loads(literal, strict=False))
    except ValueError as error:
        raise ValueError(f"{literal[:64]} is no string") from error


def _parsed(pattern: str, flags: str) -> Any:
    if "l" in flags:
        raise ValueError("the flag l of a pattern is not supported")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Python and others read in two ways
            return patterns.parse(pattern, sum(FLAGS[flag] for flag in set(flags)))
    except (re.error, OverflowError, FutureWarning, DeprecationWarning) as error:
        raise ValueError(f"the pattern /{pattern[:64]}/ is not supported here: {error}") from error


def _all(nodes: Iterable[Any], flags: int) -> str:
    return "".join(_node(code, value, flags) for code, value in nodes)


def _node(code: Any, value: Any, flags: int) -> str:
    match code:
        case codes.BRANCH:
            return f"(?:{'|'.join(_all(branch, flags) for branch in value[1])})"
        case codes.SUBPATTERN:
            _, added, removed, inner = value
            return f"(?:{_all(inner, (flags | added) & ~removed)})"
        case codes.MAX_REPEAT | codes.MIN_REPEAT:
            least, most, inner = value
            return f"(?:{_all(inner, flags)}){_times(least, most)}{'?' if code is codes.MIN_REPEAT else ''}"
    escaped, own = _ways(code, value, flags)
    ways = [re.escape(one).replace('"', r"\x22") for one in escaped] + ([own] if own else [])
    return ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"


def _character(code: Any, value: Any, flags: int) -> str:
    """One character as it is."""
    items, negated = _set(code, value, flags)
    if not negated and not flags & re.IGNORECASE and len(items) == 1 and items[0][0] is codes.LITERAL:
        return json.dumps(chr(items[0][1]), ensure_ascii=False)
    inner = _rust("".join(map(_item, items)))
    fold = "(?i:" if flags & re.IGNORECASE else "(?:"
    return f"/{fold}[{'^' if negated else ''}{inner}])/" if inner else r"/(?:.|\n)/"


def _ways(code: Any, value: Any, flags: int) -> tuple[list[str], str]:
    """Of a set of characters: those that are escaped, as that, and a pattern of the others, if there are any."""
    items, negated = _set(code, value, flags)
    inner, head = "".join(map(_item, items)), "^" if negated else ""
    found = re.compile(f"[{head}{inner}]" if inner else r"[\s\S]", flags & re.IGNORECASE)
    escaped = [json.dumps(character)[1:-1] for character in ESCAPED if found.fullmatch(character)]
    plain = [chr(code) for code in range(0x20, 0x7F) if chr(code) not in ESCAPED]
    own = ""
    if negated or _is_wide(items) or any(map(found.fullmatch, plain)):
        fold = "(?i:" if flags & re.IGNORECASE else "(?:"
        own = f"{fold}[[{head}{_rust(inner)}]&&{RAW}])" if inner else RAW
    if not escaped and not own:
        raise ValueError("a set of characters in a pattern is empty")
    return escaped, own


def _set(code: Any, value: Any, flags: int) -> tuple[list[Any], bool]:
    """The characters that a node takes, or does not take."""
    match code:
        case codes.LITERAL | codes.NOT_LITERAL:
            return [(codes.LITERAL, value)], code is codes.NOT_LITERAL
        case codes.ANY:
            return [] if flags & re.DOTALL else [(codes.LITERAL, ord("\n"))], True
        case codes.IN:
            negated = value[0][0] is codes.NEGATE
            return value[1:] if negated else value, negated
    raise ValueError(f"{str(code).lower()} is not supported in a pattern of a tool's grammar")


def _is_wide(items: Iterable[Any]) -> bool:
    """Whether there may be characters beyond ASCII in a set."""
    for code, value in items:
        last = value[1] if code is codes.RANGE else value if code is codes.LITERAL else 0x7F
        if last >= 0x7F:
            return True
    return False


def _item(item: tuple[Any, Any]) -> str:
    code, value = item
    if code is codes.CATEGORY:
        return CATEGORIES[value]
    first, last = value if code is codes.RANGE else (value, value)
    return f"{_code(first)}-{_code(last)}"


CATEGORIES = {
    codes.CATEGORY_DIGIT: r"\d", codes.CATEGORY_NOT_DIGIT: r"\D", codes.CATEGORY_SPACE: r"\s",
    codes.CATEGORY_NOT_SPACE: r"\S", codes.CATEGORY_WORD: r"\w", codes.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip


def _code(code: int) -> str:
    return f"\\U{code:08x}"


def _rust(inner: str) -> str:
    """The same in Rust's notation, which the library reads."""
    return re.sub(r"\\U([0-9a-f]{8})", lambda found: f"\\x{{{int(found[1], 16):x}}}", inner)

"""Lark grammars of a text as grammars of the same text within a JSON string, for tools whose input the model writes so.

Every string and pattern in a grammar becomes one of what JSON makes of it: a quotation mark, a backslash and control
characters are escaped, in one way each. Patterns are read as Python reads them; what it does not know is refused.
"""

import json
import re
import warnings
from collections.abc import Iterable
from re import _constants as codes
from re import _parser as patterns
from typing import Any

KEY = "x-lark"
"""In the schema of a tool's one argument: the grammar that it fits."""
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
TOKEN = re.compile(
    r"""
    (?P<blank>\s+|//[^\n]*|\#[^\n]*)
    | (?P<range>"(?:\\.|[^"\\])"\s*\.\.\s*"(?:\\.|[^"\\])")
    | (?P<string>"(?:\\.|[^"\\\n])*")(?P<fold>i?)
    | /(?P<regex>(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+)/(?P<flags>[imslux]*)
    | %import\s+common(?:\.(?P<one>\w+)(?:\s*->\s*(?P<alias>\w+))?|\s*\((?P<several>[\w\s,]+)\))
    | (?P<refused>%(?!ignore\b)\w*|<|~|&)
    | (?P<terminal>\b_?[A-Z][A-Z0-9_]*\b)(?:\.[0-9]+(?=\s*:))?
    | (?P<other>%ignore|\w+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
STATEMENT = re.compile(r"^(?=[ \t]*(?:%|[?!]?\w+(?:\.\d+)?(?:\[[^\]\n]*\])?[ \t]*:))", re.MULTILINE)
TERMINAL = re.compile(r"\s*(?:_?[A-Z][A-Z0-9_]*(?:\.\d+)?\s*:|%import)")
FLAGS = {"i": re.IGNORECASE, "s": re.DOTALL, "u": re.UNICODE, "m": re.MULTILINE, "x": re.VERBOSE}


def of_argument(schema: Any) -> str | None:
    """The right-hand side of a rule for arguments with the one text that a grammar binds; None for any other schema.

    Raises ValueError.
    """
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or len(properties) != 1:
        return None
    ((name, part),) = properties.items()
    grammar = part.get(KEY) if isinstance(part, dict) else None
    if not isinstance(grammar, str):
        return None
    head = json.dumps(f'{{{json.dumps(name, ensure_ascii=False)}: "', ensure_ascii=False)
    return f'{head} %lark {{\n{within_json(grammar)}\n}} "\\"}}"'


def within_json(grammar: str) -> str:
    """The grammar of what `json.dumps` makes of the texts of `grammar`, without its quotation marks.

    Terminals become rules, for the library's lexer never goes back: after a text that may go on with an escaped
    quotation mark it could not see an escaped end of line. What is ignored stays a terminal. Raises ValueError.
    """
    statements = STATEMENT.split(grammar)
    needs_terminals = any(one.lstrip().startswith("%ignore") for one in statements)
    made = []
    for statement in statements:
        is_ignored = statement.lstrip().startswith("%ignore")
        if not is_ignored:
            made.append(_translated(statement, as_rule=True))
        if is_ignored or (needs_terminals and TERMINAL.match(statement)):
            made.append(_translated(statement, as_rule=False))
    return "\n".join(made)


def _translated(statement: str, *, as_rule: bool) -> str:
    return "".join(_token(token, as_rule=as_rule) for token in TOKEN.finditer(statement))


def _token(token: re.Match[str], *, as_rule: bool) -> str:
    kind, made = token.lastgroup, token[0]
    if kind == "refused":
        raise ValueError(f"{made} is not supported in the Lark grammar of a tool")
    if kind == "range":
        first, last = (re.escape(_text(text)) for text in re.findall(r'"(?:\\.|[^"\\])"', token["range"]))
        made = _pattern(f"[{first}-{last}]", "", as_rule=as_rule)
    elif kind == "fold":
        text = _text(token["string"])
        made = _pattern(re.escape(text), token["fold"], as_rule=as_rule) if text else '""'
    elif kind == "flags":
        made = _pattern(token["regex"].replace(r"\/", "/"), token["flags"], as_rule=as_rule)
    elif token["one"]:
        made = _common(token["one"], token["alias"] or token["one"], as_rule=as_rule)
    elif kind == "several":
        names = re.findall(r"\w+", token["several"])
        made = "\n".join(_common(name, name, as_rule=as_rule) for name in names)
    elif kind == "blank":
        made = "\n" if "\n" in made else " "
    elif kind == "terminal":
        made = _named(token["terminal"], as_rule=as_rule)
    return made


def _named(terminal: str, *, as_rule: bool) -> str:
    return f"terminal_{terminal.lower()}" if as_rule else terminal


def _text(literal: str) -> str:
    try:
        return str(json.loads(literal, strict=False))
    except ValueError as error:
        raise ValueError(f"{literal[:64]} is no string") from error


def _common(name: str, alias: str, *, as_rule: bool) -> str:
    if name not in COMMON:
        raise ValueError(f"common.{name[:64]} is not supported in the Lark grammar of a tool")
    return f"{_named(alias, as_rule=as_rule)}: {_pattern(COMMON[name], '', as_rule=as_rule)}"


def _pattern(pattern: str, flags: str, *, as_rule: bool) -> str:
    nodes = _parsed(pattern, flags)
    if not as_rule:
        return f"/{_all(nodes, nodes.state.flags)}/"
    return f"({_expression(list(nodes), nodes.state.flags)})"


def _expression(nodes: list[Any], flags: int) -> str:
    """In rules: what is not escaped in patterns, and each escape by itself."""
    parts: list[str] = []
    plain: list[Any] = []
    for node in nodes:
        if "\\\\" not in _all([node], flags).replace(RAW, ""):
            plain.append(node)
            continue
        if plain:
            parts.append(f"/{_all(plain, flags)}/")
            plain = []
        parts.append(_in_rules(node[0], node[1], flags))
    if plain:
        parts.append(f"/{_all(plain, flags)}/")
    return " ".join(parts) or '""'


def _in_rules(code: Any, value: Any, flags: int) -> str:
    match code:
        case codes.BRANCH:
            return f"({' | '.join(_expression(list(branch), flags) for branch in value[1])})"
        case codes.SUBPATTERN:
            _, added, removed, inner = value
            return f"({_expression(list(inner), (flags | added) & ~removed)})"
        case codes.MAX_REPEAT | codes.MIN_REPEAT:
            least, most, inner = value
            times = f"{{{least},{'' if most is codes.MAXREPEAT else most}}}"
            if most is codes.MAXREPEAT and least <= 1:
                times = "+" if least else "*"
            return f"({_expression(list(inner), flags)}){times}"
    escaped, own = _ways(code, value, flags)
    ways = [json.dumps(one) for one in escaped] + ([f"/{own}/"] if own else [])
    return f"({' | '.join(ways)})"


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
            times = f"{{{least},{'' if most is codes.MAXREPEAT else most}}}"
            return f"(?:{_all(inner, flags)}){times}{'?' if code is codes.MIN_REPEAT else ''}"
    escaped, own = _ways(code, value, flags)
    ways = [re.escape(one).replace('"', r"\x22") for one in escaped] + ([own] if own else [])
    return ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"


def _ways(code: Any, value: Any, flags: int) -> tuple[list[str], str]:
    """Of a set of characters: those that are escaped, as that, and a pattern of the others, if there are any."""
    match code:
        case codes.LITERAL | codes.NOT_LITERAL:
            items, negated = [(codes.LITERAL, value)], code is codes.NOT_LITERAL
        case codes.ANY:
            items, negated = [] if flags & re.DOTALL else [(codes.LITERAL, ord("\n"))], True
        case codes.IN:
            negated = value[0][0] is codes.NEGATE
            items = value[1:] if negated else value
        case _:
            raise ValueError(f"{str(code).lower()} is not supported in a pattern of a tool's grammar")
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

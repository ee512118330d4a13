"""Grammars that bind an answer, as text in llguidance's Lark dialect: from JSON schemas, patterns, choices and tools.

They are compiled here once to be checked, in the time that the library's own limits leave them, so that what no grammar
takes is an error of the client's before the engine sees it. JSON is written as Python writes it (`{"a": [1, 2]}`): one
way to space it leaves a model no way to fill its limit with blanks. Which grammar a request needs is said elsewhere.
"""

import json
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark, is_lark_syntax

from server.core import schemas
from server.errors import BadRequestError

LONGEST = 131_072  # characters of a grammar: the slowest of that length take a second to compile
LONGEST_GBNF = 16_384  # its conversion takes the square of that
LONGEST_REASON = 300
LIMITS = LLParserLimits(max_grammar_size=20_000, verbose_errors=False)
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
BYTES = LLTokenizer("byte")  # for the checks any vocabulary will do
ANY_OPEN, ANY_CLOSE = 1, 2  # of its ids

Schema = schemas.Schema


def of_schema(schema: Schema) -> str:
    """The right-hand side of a rule for JSON that fits `schema`, closed (schemas.py); raises ValueError."""
    try:
        schema = schemas.closed(schema)
        if isinstance(schema, bool):
            schema = {} if schema else {"enum": []}
        return "%json " + json.dumps({**schema, "x-guidance": SPACING}, ensure_ascii=False)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def of_regex(pattern: str) -> str:
    """The right-hand side of a rule for text that matches all of `pattern`."""
    grammar = json.loads(LLMatcher.grammar_from_regex(pattern))
    text: str = grammar["grammars"][0]["lark_grammar"]
    return text.removeprefix("start: ")


def of_choices(choices: Sequence[str]) -> str:
    """The right-hand side of a rule for exactly one of `choices`."""
    return " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def of_lark(grammar: str) -> str:
    """A whole grammar of the client's, in Lark's or in llama.cpp's notation; raises ValueError."""
    if not is_lark_syntax(grammar) and len(grammar) > LONGEST_GBNF:
        raise ValueError(f"more than {LONGEST_GBNF} characters in this notation; use Lark's")
    try:
        return any_to_lark(grammar)
    except Exception as error:
        raise ValueError(f"this is no grammar: {error}"[:LONGEST_REASON]) from error


def of_tag(tag: int | str) -> str:
    """What stands for a tag in a rule: a token's id, or text."""
    return json.dumps(tag, ensure_ascii=False) if isinstance(tag, str) else f"<[{tag}]>"


def of_calls(
    tools: Sequence[tuple[str, Schema]], opening: int | str, closing: int | str, *, most: int | None, inside: str = ""
) -> str:
    """Rules for `calls`: one call, or with `most` None several, of `tools`: names with the schemas of the arguments.

    A call stands between the tags `opening` and `closing`, tokens or text; the model may write `inside` next to them.
    """
    before, after = of_tag(opening), of_tag(closing)
    if inside:
        before, after = f"{before} {json.dumps(inside)}?", f"{json.dumps(inside)}? {after}"
    names = [json.dumps(json.dumps(name, ensure_ascii=False), ensure_ascii=False)[1:-1] for name, _ in tools]
    rules = [
        "calls: call" if most == 1 else 'calls: call ("\\n" call)*',
        "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
    ]
    for index, (name, (_, schema)) in enumerate(zip(names, tools, strict=True)):
        head = f'"{{\\"name\\": {name}, \\"arguments\\": "'
        rules.append(f'call_{index}: {before} {head} arguments_{index} "}}" {after}')
        rules.append(f"arguments_{index}: {of_schema(schema)}")
    return "\n".join(rules)


def check(grammar: str, param: str) -> None:
    """Raises BadRequestError, for `param`, where `grammar` cannot be compiled within LIMITS. Takes up to half a second.

    Token ids in it must be ANY_OPEN and ANY_CLOSE.
    """
    if len(grammar) > LONGEST:
        raise BadRequestError(f"{param}: a grammar of more than {LONGEST} characters.", param=param)
    matcher = LLMatcher(BYTES, grammar, log_level=0, limits=LIMITS)
    error = matcher.get_error()
    if not error:
        matcher.compute_bitmask()
        error = matcher.get_error()
    if error:
        reason = " ".join(error.partition("\n")[0].split())
        raise BadRequestError(f"{param}: no grammar takes this: {reason[:LONGEST_REASON]}", param=param)

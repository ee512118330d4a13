"""Grammars that bind an answer, as text in llguidance's Lark dialect: from JSON schemas, patterns, choices and tools.

They are compiled here once to be checked, so that what no grammar takes, or what would hold up the engine, is an error
of the client's before the engine sees it. The library's own limits do not bound what some of them cost, so all of this
runs in a process apart, within limits of time and MOST_MEMORY (`grammar_worker`). JSON is written as Python writes it
(`{"a": [1, 2]}`): one way to space it leaves a model no way to fill its limit with blanks. Which grammar a request
needs is said elsewhere.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import orjson
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark, is_lark_syntax

from server.core import lark_in_json, schema_limits, schema_rewrites, schemas

LONGEST = 131_072  # characters of a grammar: the slowest of that length take a second to compile
LONGEST_GBNF = 16_384  # its conversion takes the square of that
LONGEST_REASON = 300
MOST_COMPILE_SECONDS = 0.5  # the engine compiles it again, twice, between two steps of all requests
MOST_MEMORY = 512 * 1024**2  # bytes of address space
LIMITS = LLParserLimits(max_grammar_size=20_000, verbose_errors=False)
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
BYTES = LLTokenizer("byte")  # for the checks any vocabulary will do
ANY_OPEN, ANY_CLOSE = 1, 2  # of its ids

Schema = schemas.Schema


def schema_of(value: Any) -> Schema:
    """The schema that a client sent, as JSON or as the text of it; raises ValueError."""
    try:
        schema = orjson.loads(value) if isinstance(value, str) else value
    except orjson.JSONDecodeError as error:
        raise ValueError(f"this is not valid JSON: {error.msg} (character {error.pos})") from None
    if not isinstance(schema, dict | bool):
        raise ValueError("a JSON schema is an object")  # noqa: TRY004 - told to the client as a bad value
    return schema


def of_schema(schema: Schema) -> str:
    """The right-hand side of a rule for JSON that fits `schema`, closed (schemas.py); raises ValueError."""
    try:
        bound = lark_in_json.of_argument(schema)
        if bound is not None:
            return bound
        schema_limits.check(schema)
        schema = schemas.closed(schema_rewrites.rewritten(schema))
        if isinstance(schema, bool):
            schema = {} if schema else {"enum": []}
        return "%json " + json.dumps({**schema, "x-guidance": SPACING}, ensure_ascii=False)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def of_regex(pattern: str) -> str:
    """The right-hand side of a rule for text that matches all of `pattern`; raises ValueError."""
    schema_rewrites.refuse_look_around(pattern)
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
    tools: Sequence[tuple[str, Schema]],
    opening: int | str,
    closing: int | str,
    *,
    most: int | None,
    inside: str = "",
    is_free: bool = False,
) -> str:
    """Rules for `calls`: one call, or with `most` None several, of `tools`: names with the schemas of the arguments.

    A call stands between the tags `opening` and `closing`, tokens or text; the model may write `inside` next to them.
    `is_free`: any text may stand around the calls, or instead of them. It cannot hold a tag that is a token, and a tag
    that is text ends it.
    """
    before, after = of_tag(opening), of_tag(closing)
    if is_free and isinstance(opening, str):
        before = "text_to_call"
    if inside:
        before, after = f"{before} {json.dumps(inside)}?", f"{json.dumps(inside)}? {after}"
    names = [json.dumps(json.dumps(name, ensure_ascii=False), ensure_ascii=False)[1:-1] for name, _ in tools]
    rules = [
        _calls_in_text(most, opening) if is_free else "calls: call" if most == 1 else 'calls: call ("\\n" call)*',
        "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
    ]
    for index, (name, (_, schema)) in enumerate(zip(names, tools, strict=True)):
        head = f'"{{\\"name\\": {name}, \\"arguments\\": "'
        rules.append(f'call_{index}: {before} {head} arguments_{index} "}}" {after}')
        rules.append(f"arguments_{index}: {of_schema(schema)}")
    return "\n".join(rules)


def _calls_in_text(most: int | None, opening: int | str) -> str:
    """Where `opening` is text, the text before a call is part of it: the shortest that ends with that."""
    text = "TEXT: /(.|\\n)*/"
    if isinstance(opening, str):
        calls = "call? TEXT?" if most == 1 else "call* TEXT?"
        return f"calls: {calls}\n{text}\ntext_to_call[suffix={of_tag(opening)}]: /(.|\\n)*/"
    return f"calls: TEXT? call?\n{text}" if most == 1 else f"calls: TEXT? (call TEXT?)*\n{text}"


def check(grammar: str) -> None:
    """Raises ValueError where `grammar` cannot be compiled within LIMITS and MOST_COMPILE_SECONDS.

    Token ids in it must be ANY_OPEN and ANY_CLOSE.
    """
    if len(grammar) > LONGEST:
        raise ValueError(f"a grammar of more than {LONGEST} characters.")
    started = time.process_time()
    matcher = LLMatcher(BYTES, grammar, log_level=0, limits=LIMITS)
    error = matcher.get_error()
    if not error:
        matcher.compute_bitmask()
        error = matcher.get_error()
    if error:
        reason = " ".join(error.partition("\n")[0].split())
        raise ValueError(f"no grammar takes this: {reason[:LONGEST_REASON]}")
    if time.process_time() - started > MOST_COMPILE_SECONDS:
        raise ValueError(f"this grammar takes more than {MOST_COMPILE_SECONDS} s to compile")

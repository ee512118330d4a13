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

from server.core import schema_limits, schema_rewrites, schemas

LONGEST = 131_072  # characters of a grammar: the slowest of that length take a second to compile
LONGEST_GBNF = 16_384  # its conversion takes the square of that
LONGEST_REASON = 300
MOST_COMPILE_SECONDS = 0.5  # the engine compiles it again, twice, between two steps of all requests
MOST_MEMORY = 512 * 1024**2  # bytes of address space
LIMITS = LLParserLimits(max_grammar_size=20_000, verbose_errors=False)
SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
BYTES = LLTokenizer("byte")  # for the checks any vocabulary will do
BYTE_IDS = 256  # of its tokens that a grammar may name instead of the model's

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


def _reason(error: str) -> str:
    """The library's first line; where it only says that a pattern is none, also what is wrong with the pattern."""
    first, *others = error.splitlines()
    details = [line.removeprefix("error: ") for line in others if line.startswith("error: ")]
    return " ".join(" ".join([first, *details[:1]]).split())


def check(grammar: str) -> None:
    """Raises ValueError where `grammar` cannot be compiled within LIMITS and MOST_COMPILE_SECONDS.

    Token ids in it must be below BYTE_IDS.
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
        raise ValueError(f"no grammar takes this: {_reason(error)[:LONGEST_REASON]}")
    if time.process_time() - started > MOST_COMPILE_SECONDS:
        raise ValueError(f"this grammar takes more than {MOST_COMPILE_SECONDS} s to compile")

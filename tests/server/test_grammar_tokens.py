"""Grammars as the engine's library takes them, with the embedded model's tokens: what may be drawn, token by token."""

import json
from typing import Any

import llguidance.numpy
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer

from chat_templates.format import ChatFormat
from server.settings import EMBEDDED_MODEL
from tests.fake_engine import FakeEngine
from tests.server.conftest import Client, always, body

CHAT = "/v1/chat/completions"
CITY = {
    "type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "note", "parameters": CITY}},
]


@pytest.fixture(scope="module")
def tokens(fmt: ChatFormat) -> LLTokenizer:
    """As vLLM's backend makes it (v1/structured_output/backend_guidance.py)."""
    spec = (EMBEDDED_MODEL / "tokenizer.json").read_text()
    config = json.loads((EMBEDDED_MODEL / "config.json").read_text())
    return LLTokenizer(spec, n_vocab=config["vocab_size"], eos_token=fmt.end_of_turn_id)


async def grammar_of(client: Client, fmt: ChatFormat, **fields: Any) -> str:
    engine = FakeEngine(always([fmt.end_of_turn_id]), (fmt.end_of_turn_id,))
    async with client(engine) as http:
        response = await http.post(CHAT, json=body(**fields))
    assert response.status_code == 200, response.text
    grammar = engine.seen[0].sampling.grammar
    assert grammar is not None
    return grammar


def allowed(matcher: LLMatcher, tokens: LLTokenizer) -> set[int]:
    bits = llguidance.numpy.allocate_token_bitmask(1, tokens.vocab_size)
    llguidance.numpy.fill_next_token_bitmask(matcher, bits, 0)
    return set(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist())


def taken(grammar: str, ids: list[int], tokens: LLTokenizer, fmt: ChatFormat) -> int:
    """How many of the ids may be drawn; one more if the answer may end there."""
    matcher = LLMatcher(tokens, grammar, log_level=0)
    for number, token_id in enumerate(ids):
        if token_id not in allowed(matcher, tokens):
            return number
        assert matcher.consume_token(token_id), matcher.get_error()
    return len(ids) + (matcher.is_accepting() and not matcher.is_error())


async def test_the_spelling_of_a_control_token_is_drawn_in_ordinary_tokens(
    client: Client, fmt: ChatFormat, tokens: LLTokenizer
) -> None:
    for spelling, token_id in fmt.vocabulary.control.items():
        text = f"a{spelling}b"
        escaped = "".join(f"\\{char}" if char in "[]|" else char for char in text)
        for form, answer in (
            ({"choice": [text]}, text),
            ({"json": {"const": text}}, json.dumps(text)),
            ({"regex": escaped}, text),
        ):
            grammar = await grammar_of(client, fmt, structured_outputs=form)
            ids = fmt.encode_text(answer)
            assert taken(grammar, ids, tokens, fmt) == len(ids) + 1
            before, after = (fmt.encode_text(part) for part in answer.split(spelling))
            assert taken(grammar, [*before, token_id, *after], tokens, fmt) == len(before)
        schema = {"type": "object", "properties": {"x": {"const": text}}, "required": ["x"]}
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        grammar = await grammar_of(client, fmt, tools=tools, tool_choice="required", parallel_tool_calls=False)
        call = fmt.encode_text(json.dumps({"name": "f", "arguments": {"x": text}}))
        ids = [fmt.tool_call_id, *call, fmt.tool_call_end_id]
        assert taken(grammar, ids, tokens, fmt) == len(ids) + 1


async def test_text_beside_strict_tools_may_be_any_ordinary_tokens(
    client: Client, fmt: ChatFormat, tokens: LLTokenizer
) -> None:
    grammar = await grammar_of(client, fmt, tools=TOOLS)
    matcher = LLMatcher(tokens, grammar, log_level=0)
    ordinary = {
        token_id
        for token_id in range(tokens.vocab_size)
        if token_id not in fmt.control_ids and _is_text(fmt.vocabulary.token_bytes(token_id))
    }
    for token_id in [None, *fmt.encode_text('So: {"name": <tool_call>\n')]:
        if token_id is not None:
            assert matcher.consume_token(token_id)
        assert ordinary <= allowed(matcher, tokens)
        assert allowed(matcher, tokens) & fmt.control_ids == {fmt.tool_call_id, fmt.end_of_turn_id}


def _is_text(data: bytes) -> bool:
    """Whether a token's bytes are whole characters; others may be drawn where they make one."""
    try:
        return bool(data.decode())
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize(
    ("call", "rest"),
    [
        ('{"name": "weather", "arguments": {"city": "Rome"}}', ""),
        ('{"name": "note", "arguments": {"any": [1]}}', ""),
        ('{"name": "', 'other", "arguments": {}}'),
        ('{"name": "weather", "arguments": {"city": "', 'Paris"}}'),
        ("", "oops"),
    ],
)
async def test_calls_of_strict_tools_are_bound_from_their_first_token(
    client: Client, fmt: ChatFormat, tokens: LLTokenizer, call: str, rest: str
) -> None:
    grammar = await grammar_of(client, fmt, tools=TOOLS)
    before = [*fmt.encode_text("Let me see.\n"), fmt.tool_call_id, *fmt.encode_text(call)]
    if rest:
        number = taken(grammar, [*before, *fmt.encode_text(rest)], tokens, fmt)
        assert number < len(before) + len(fmt.encode_text(rest))
        return
    again = [*before, fmt.tool_call_end_id, *before, fmt.tool_call_end_id, *fmt.encode_text("\nDone.")]
    assert taken(grammar, again, tokens, fmt) == len(again) + 1


SEVENS = {"type": "array", "items": {"enum": [7]}, "minItems": 40_000}
BEHIND = {"type": "object", "properties": {"a": {"type": "string"}, "b": SEVENS}, "required": ["a", "b"]}
PAIRS = {
    "$ref": "#/$defs/a0",
    "$defs": {
        "a17": {"const": 7},
        **{f"a{n}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/a{n + 1}"}] * 2, "minItems": 2, "items": False}
           for n in range(17)},
    },
}  # fmt: skip
TEXT = ", ".join(["7"] * 50)
UNTRUE = '%llguidance {"no_forcing": false}\nstart: ("7" ", "){40000}'


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"structured_outputs": {"json": SEVENS}}, f"[{TEXT}"),
        ({"structured_outputs": {"json": {**SEVENS, "minItems": 5000}}}, f"[{TEXT}"),
        ({"structured_outputs": {"json": BEHIND}}, f'{{"a": "x", "b": [{TEXT}'),
        ({"structured_outputs": {"json": {"const": [7] * 4000}}}, f"[{TEXT}"),
        ({"structured_outputs": {"json": {"const": "a" * 100_000}}}, '"' + "a" * 100),
        ({"structured_outputs": {"json": PAIRS}}, "[" * 17 + "7, 7], [7, 7]], [[7, 7]"),
        ({"structured_outputs": {"choice": ["b", "a" * 100_000]}}, "a" * 100),
        ({"structured_outputs": {"regex": "(7, ){40000}"}}, TEXT),
        ({"structured_outputs": {"grammar": UNTRUE}}, TEXT),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": BEHIND}}], "tool_choice": "required"},
         f'{{"name": "f", "arguments": {{"a": "x", "b": [{TEXT}'),
    ],
)  # fmt: skip
async def test_much_text_that_can_come_in_one_way_only_is_drawn_as_any_other(
    client: Client, fmt: ChatFormat, tokens: LLTokenizer, fields: dict[str, Any], text: str
) -> None:
    """The library would tokenize all that is to come for each token, and beyond 50,000 items it gives up."""
    grammar = await grammar_of(client, fmt, **fields)
    assert grammar.startswith('%llguidance {"no_forcing": true}\n')
    ids = fmt.encode_text(text)
    if "tools" in fields:
        ids = [fmt.tool_call_id, *ids]
    assert taken(grammar, ids, tokens, fmt) == len(ids)

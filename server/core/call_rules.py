"""Grammars of tool calls in each form that models write them in, as rules in llguidance's Lark dialect.

What the rules let through, `chat_templates.tool_forms.reader` reads back. In forms without quotes a text's schema binds
it by `enum` and `const` alone, not by `pattern`, `format` or its length; the grammar of a tool's one text binds it.
"""

import json
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

from chat_templates.tool_forms.form import (
    BareKeyCalls,
    CallForm,
    JsonCalls,
    NamedJsonCalls,
    NestedCalls,
    PythonCalls,
    TaggedCalls,
)
from chat_templates.tool_forms.values import (
    alternatives,
    followed,
    is_text,
    known_values,
    parameters_of,
    types_of,
)
from server.core.grammar_jobs import TextGrammar
from server.core.text_grammars import as_it_is, within_json

Schema = dict[str, Any] | bool
_ANY = r"(.|\n)*"
_KEY = r"/[a-zA-Z_][a-zA-Z0-9_\-]*/"
_PYTHON = r"""python: STRING | NUMBER | "True" | "False" | "None" | array | object
array: "[" (python (", " python)*)? "]"
object: "{" (STRING ": " python (", " STRING ": " python)*)? "}"
STRING: /"([^"\\\x00-\x1f]|\\["\\nt])*"|'([^'\\\x00-\x1f]|\\['\\nt])*'/
NUMBER: /-?(0|[1-9][0-9]{0,29})(\.[0-9]{1,30})?(e[-+]?[0-9]{1,2})?/"""
_BARE = r"""bare: text_value | NUMBER | "true" | "false" | "null" | bare_list | bare_object
bare_list: "[" (bare ("," bare)*)? "]"
bare_object: "{" (/[a-zA-Z_][a-zA-Z0-9_\-]*/ ":" bare ("," /[a-zA-Z_][a-zA-Z0-9_\-]*/ ":" bare)*)? "}"
NUMBER: /-?(0|[1-9][0-9]{0,29})(\.[0-9]{1,30})?(e[-+]?[0-9]{1,2})?/"""
_BARE_OF = {
    "string": "text_value",
    "boolean": '("true" | "false")',
    "null": '"null"',
    "number": "NUMBER",
    "integer": "/-?(0|[1-9][0-9]*)/",
    "array": "bare_list",
    "object": "bare_object",
}
_INTEGER = ("type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_PYTHON_OF = {
    "string": "STRING",
    "boolean": '("True" | "False")',
    "null": '"None"',
    "number": "NUMBER",
    "integer": "/-?(0|[1-9][0-9]{0,29})/",
}


class CallRules:
    """Writes the rule `calls`, and what it needs, for `tools`: names with the schemas of the arguments.

    `tokens`: the ids of the tokens in the form's tags by their spellings. `of_schema` makes the right-hand side of a
    rule for JSON that fits a schema. `texts`: by the names of tools whose one argument is a text, its grammar.
    """

    def __init__(
        self,
        form: CallForm,
        tools: Sequence[tuple[str, Schema]],
        tokens: Mapping[str, int],
        of_schema: Callable[[Schema], str],
        texts: Mapping[str, TextGrammar] | None = None,
    ) -> None:
        self._form = form
        self._tools = tools
        self._tokens = tokens
        self._of_schema = of_schema
        self._texts = texts or {}
        self._split = _splitter(tokens)

    def text(self, *, several: bool, is_free: bool = False) -> str:
        """The rules, for one call or for `several`.

        `is_free`: any text may stand around the calls, or instead of them. It cannot hold a tag that is a token, and a
        tag that is text ends it.
        """
        calls = [f"call_{index}" for index in range(len(self._tools))]
        rules = [*self._sections(several=several, is_free=is_free), f"a_call: {' | '.join(calls)}"]
        for call, (name, schema) in zip(calls, self._tools, strict=True):
            rules += self._call(call, name, schema)
        if isinstance(self._form, PythonCalls):
            rules.append(_PYTHON)
        if isinstance(self._form, BareKeyCalls):
            rules += [_BARE, *self._text_in_quotes(self._form)]
        if isinstance(self._form, NestedCalls):
            rules += self._text_to_mark(self._form)
        if isinstance(self._form, TaggedCalls):
            _, end = self._at_token(self._form.param_close)
            rules += [f"FREE_TEXT: {self._free_text(self._form)}", f"free_text: FREE_TEXT {self._tags(end)}"]
        return "\n".join(rules)

    def _sections(self, *, several: bool, is_free: bool) -> Iterator[str]:
        """`calls`, and `call`: a section."""
        form = self._form
        shares, before, between, after = _layout(form)
        gap = _quoted(between) + ("?" if isinstance(form, TaggedCalls) and form.is_loose else "")
        inner = f"a_call ({gap} a_call)*" if shares and several else "a_call"
        opening = self._tags(_opening(form))
        if isinstance(form, NamedJsonCalls) and form.answer_open:
            yield f"calls: call | {self._tags(form.answer_open)} TEXT\nTEXT: /{_ANY}/" if is_free else "calls: call"
        elif is_free:
            opening = yield from self._in_text(several=several)
        elif shares or not several:
            yield "calls: call"
        else:
            yield f"calls: call ({gap} call)*"
        yield f"call: {' '.join((opening, before, inner, after, self._tags(form.close)))}"

    def _in_text(self, *, several: bool) -> Generator[str, None, str]:
        """Calls with text around them; returns what opens one.

        Where that is text, the text before a call is part of it: the shortest that ends with that. What stands before a
        token in a tag is part of the text too.
        """
        text = "TEXT: /(.|\\n)*/"
        before, from_token = self._at_token(_opening(self._form))
        if from_token:
            yield f"calls: TEXT? {'(call TEXT?)*' if several else 'call?'}"
            yield text
            return self._tags(from_token)
        yield f"calls: {'call*' if several else 'call?'} TEXT?"
        yield text
        yield f"text_to_call[suffix={_quoted(before)}]: /(.|\\n)*/"
        return "text_to_call"

    def _call(self, rule: str, name: str, schema: Schema) -> Iterator[str]:
        form, arguments = self._form, rule.replace("call", "arguments")
        match form:
            case JsonCalls():
                yield f'{rule}: {_json_head(form, name)} {arguments} "}}"'
                yield f"{arguments}: {self._arguments(name, schema)}"
            case NamedJsonCalls():
                number = '":" /[0-9]{1,3}/' if form.is_numbered else ""
                head = " ".join((self._tags(form.call_open), _quoted(form.name_prefix + name), number))
                yield f"{rule}: {head} {self._tags(form.name_end)} {arguments} {self._tags(form.call_close)}"
                yield f"{arguments}: {self._arguments(name, schema)}"
            case TaggedCalls():
                yield from self._tagged_call(form, rule, name, schema)
            case NestedCalls():
                head = " ".join((self._tags(form.call_open), _quoted(name), self._tags(form.name_end)))
                text = self._texts.get(name)
                yield f"{rule}: {head} {self._elements(form, schema, schema, 8, text)} {self._tags(form.call_close)}"
            case BareKeyCalls():
                head = f"{self._tags(form.call_open)} {_quoted(name + '{')}"
                text = self._texts.get(name)
                fields = (
                    self._bare_fields(form, schema, schema) if text is None else self._bare_text(form, text, schema)
                )
                yield f'{rule}: {head} {fields} "}}"'
            case PythonCalls():
                yield from self._python_call(rule, name, schema)

    def _arguments(self, name: str, schema: Schema) -> str:
        """As JSON."""
        text = self._texts.get(name)
        if text is None:
            return self._of_schema(schema)
        (key,) = parameters_of(schema)
        if text.kind == "regex":
            bound = {"type": "string", "pattern": f"^(?:{text.definition})$"}
            return self._of_schema({"type": "object", "properties": {key: bound}, "required": [key]})
        return f'{_quoted(f"{{{json.dumps(key)}: ")} {_string(text)} "}}"'

    def _tagged_call(self, form: TaggedCalls, rule: str, name: str, schema: Schema) -> Iterator[str]:
        space = _space(form)
        arguments = list(_arguments(schema))
        number = f"{self._tags(form.index_open)} /[0-9]{{1,3}}/" if form.index_open else ""
        parts = (self._tags(form.call_open), _quoted(name), number, self._tags(form.name_end))
        head = " ".join(part for part in parts if part)
        texts = " ".join(
            f"({space} {rule}_{index}){'' if needed else '?'}" for index, (*_, needed) in enumerate(arguments)
        )
        rest = f"({space} {rule}_any)*" if _is_open(schema) else ""
        end = f"{space} {self._tags(form.call_close)}" if form.call_close else ""
        yield f"{rule}: {head} {texts} {rest} {end}"
        for index, (key, part, _) in enumerate(arguments):
            key_text = f"{self._tags(form.param_open)} {_quoted(key)}"
            text = self._texts.get(name)
            value = self._tagged_value(form, part, schema) if text is None else self._tagged_text(form, text)
            yield f"{rule}_{index}: {key_text} {value}"
        if rest:
            yield f"{rule}_any: {self._tags(form.param_open)} {_KEY} {self._tagged_value(form, {}, schema)}"

    def _tagged_value(self, form: TaggedCalls, part: Any, root: Schema) -> str:
        """From the end of the key to the end of the value."""
        key_end, close = self._key_end(form), self._tags(form.param_close)
        types = types_of(part, root)
        if not is_text(types):
            if form.json_key_ends:
                named = {"number" if name == "integer" else name for name in types - {"string"}}
                ends = sorted({self._tags(form.json_key_ends.get(name, form.key_end)) for name in named})
                key_end = f"({' | '.join(ends)})"
            trim = _quoted("\n") if form.trims else ""
            return f"{key_end} {trim} ({self._of_schema(_with_definitions(part, root))}) {trim} {close}"
        key_end = self._tags(form.text_key_end) if form.text_key_end else key_end
        trim = "\n" if form.trims else ""
        known = known_values(part, root)
        if known is not None:
            texts = " | ".join(_quoted(trim + text + trim) for text in known)
            return f"{key_end} ({texts}) {close}"
        return f"{key_end} {_quoted(trim)} free_text"

    def _key_end(self, form: TaggedCalls) -> str:
        ways = list(map(self._tags, form.key_ends))
        return f"({' | '.join(ways)})" if form.is_loose else ways[0]

    def _tagged_text(self, form: TaggedCalls, text: TextGrammar) -> str:
        """The same of a text that fits a grammar. It should have no tag in it: the reader would take it for the end."""
        trim = "\n" if form.trims else ""
        before, from_token = self._at_token(form.param_close)
        end = " ".join(map(_quoted, trim + before))  # each a lexeme, as in the text
        key_end = self._tags(form.text_key_end) or self._key_end(form)
        return f"{key_end} {_quoted(trim)} %lark {{\n{as_it_is(text)}\n}} {end} {self._tags(from_token)}"

    def _free_text(self, form: TaggedCalls) -> str:
        """Text up to the tag that ends it, and that up to its first token; without a tag that would end it."""
        end, trim = form.param_close, "\n" if form.trims else ""
        before, from_token = self._at_token(end)
        tags = dict.fromkeys((end, form.param_open, form.call_close or form.close))
        never = "".join(f" & ~/{_ANY}{_regex(tag)}{_ANY}/" for tag in tags if tag != end or from_token)
        if from_token:
            return f"/{_ANY}{_regex(trim + before)}/{never}"
        return f"/{_ANY}{_regex(trim + end)}/ & ~/{_ANY}{_regex(end)}(.|\\n)+/{never}"

    def _text_to_mark(self, form: NestedCalls) -> Iterator[str]:
        """A text, and the mark that ends it."""
        before, from_token = self._at_token(form.mark)
        ends = f"{_regex(before)}/ & ~/{_ANY}{_regex(before)}(.|\\n)+" if not from_token else ""
        yield f"NESTED_TEXT: /{_ANY}{ends}/"
        yield f"text_to_mark: NESTED_TEXT {self._tags(from_token)}"

    def _elements(
        self, form: NestedCalls, schema: Any, root: Schema, depth: int, text: TextGrammar | None = None
    ) -> str:
        """The keys and values of an object. `text`: what the one value of a custom tool has to fit."""
        parts = []
        for key, part, needed in _arguments(schema):
            value = self._nested_value(form, part, root, depth) if text is None else self._nested_text(form, text)
            element = f"{self._tags(form.mark)} {_quoted(f'<{key}>')} {value} {_quoted(f'</{key}>')}"
            parts.append(element if needed else f"({element})?")
        return " ".join(parts)

    def _nested_value(self, form: NestedCalls, part: Any, root: Schema, depth: int) -> str:
        """A value, and the mark of the tag that ends it."""
        mark, part = self._tags(form.mark), followed(part, root)
        listed = [f"{self._nested_literal(form, value)} {mark}" for value in known_values(part, root) or ()]
        if ways := listed or [self._nested_value(form, one, root, depth - 1) for one in alternatives(part) if depth]:
            return f"({' | '.join(ways)})"
        types = types_of(part, root)
        if "string" in types or not types:
            return "text_to_mark"
        if depth and types == {"object"} and parameters_of(part):
            return f"{self._elements(form, part, root, depth - 1)} {mark}"
        if depth and types == {"array"} and "items" in part:
            item = self._nested_value(form, part["items"], root, depth - 1)
            return f"({mark} {_quoted(f'<{form.item}>')} {item} {_quoted(f'</{form.item}>')})* {mark}"
        return f"({self._of_schema(_with_definitions(part, root))}) {mark}"

    def _nested_literal(self, form: NestedCalls, value: Any) -> str:
        match value:
            case str():
                return _quoted(value)
            case list():
                fields = [(form.item, item) for item in value]
            case dict():
                fields = list(value.items())
            case _:
                return _quoted(json.dumps(value))
        mark = self._tags(form.mark)
        return " ".join(
            f"{mark} {_quoted(f'<{key}>')} {self._nested_literal(form, item)} {mark} {_quoted(f'</{key}>')}"
            for key, item in fields
        )

    def _nested_text(self, form: NestedCalls, text: TextGrammar) -> str:
        """A text that fits a grammar, and the mark. It should have no mark in it."""
        before, from_token = self._at_token(form.mark)
        end = " ".join(map(_quoted, before))  # each a lexeme, as in the text
        return f"%lark {{\n{as_it_is(text)}\n}} {end} {self._tags(from_token)}"

    def _text_in_quotes(self, form: BareKeyCalls) -> Iterator[str]:
        """A text, the quote that ends it as far as that is text."""
        before, from_token = self._at_token(form.quote)
        ends = "" if from_token else f"{_regex(before)}/ & ~/{_ANY}{_regex(before)}(.|\\n)+"
        yield f"BARE_TEXT: /{_ANY}{ends}/"
        yield f"text_value: {self._tags(form.quote)} BARE_TEXT {self._tags(from_token)}"

    def _bare_text(self, form: BareKeyCalls, text: TextGrammar, schema: Schema) -> str:
        """The one field of a custom tool, whose text should have no quote of the form's in it."""
        (key,) = parameters_of(schema)
        before, from_token = self._at_token(form.quote)
        end = " ".join(map(_quoted, before))  # each a lexeme, as in the text
        quoted = f"{self._tags(form.quote)} %lark {{\n{as_it_is(text)}\n}} {end} {self._tags(from_token)}"
        return f"{_quoted(key + ':')} {quoted}"

    def _bare_fields(self, form: BareKeyCalls, schema: Any, root: Schema, depth: int = 8) -> str:
        """The keys and values of an object without quotes."""
        fields = [
            (f"{_quoted(key + ':')} {self._bare_value(form, part, root, depth)}", needed)
            for key, part, needed in _arguments(schema)
        ]
        if _is_open(schema):
            fields.append((f'{_KEY} ":" bare', False))
        return _separated(fields, ",")

    def _bare_value(self, form: BareKeyCalls, part: Any, root: Schema, depth: int) -> str:
        part = followed(part, root)
        listed = [self._bare_literal(form, value) for value in known_values(part, root) or ()]
        if ways := listed or [self._bare_value(form, one, root, depth - 1) for one in alternatives(part) if depth]:
            return f"({' | '.join(ways)})"
        types = types_of(part, root)
        if not isinstance(part, Mapping) or len(types) != 1 or depth == 0:
            ways = sorted({_BARE_OF.get(name, "bare") for name in types})
            return f"({' | '.join(ways)})" if ways else "bare"
        match next(iter(types)):
            case "integer" | "number":
                return "%json " + json.dumps({key: part[key] for key in part if key in _INTEGER})
            case "array" if "items" in part:
                item = self._bare_value(form, part["items"], root, depth - 1)
                return f'("[" ({item} ("," {item})*)? "]")'
            case "object" if parameters_of(part):
                return f'("{{" {self._bare_fields(form, dict(part), root, depth - 1)} "}}")'
            case name:
                return _BARE_OF.get(name, name)

    def _bare_literal(self, form: BareKeyCalls, value: Any) -> str:
        quote = self._tags(form.quote)
        match value:
            case str():
                return f"{quote} {_quoted(value)} {quote}"
            case list():
                return _bracketed("[", [self._bare_literal(form, item) for item in value], ",", "]")
            case dict():
                fields = [f"{_quoted(f'{key}:')} {self._bare_literal(form, item)}" for key, item in value.items()]
                return _bracketed("{", fields, ",", "}")
        return _quoted(json.dumps(value))

    def _python_call(self, rule: str, name: str, schema: Schema) -> Iterator[str]:
        arguments = list(_arguments(schema))
        text = self._texts.get(name)
        parts = [
            (f"{_quoted(key + '=')} {_python_value(part, schema) if text is None else _string(text)}", needed)
            for key, part, needed in arguments
        ]
        if _is_open(schema):
            parts.append((f'{_KEY} "=" python', False))
        yield f'{rule}: {_quoted(name + "(")} {_separated(parts)} ")"'

    def _tags(self, text: str) -> str:
        """A mark that begins several tags is a lexeme of its own: the lexer never goes back."""
        mark = self._form.mark if isinstance(self._form, NestedCalls) else ""
        pieces = text.split(mark) if mark and mark not in self._tokens else [text]
        return f" {_quoted(mark)} ".join(tags_in_rule(piece, self._tokens) for piece in pieces)

    def _at_token(self, tag: str) -> tuple[str, str]:
        """A tag's text before its first token, and the rest."""
        first = self._split.search(tag)
        return (tag, "") if first is None else (tag[: first.start()], tag[first.start() :])


def tags_in_rule(text: str, tokens: Mapping[str, int]) -> str:
    """Tags, of tokens and of text, as part of a rule."""
    pieces = _splitter(tokens).split(text)
    return " ".join(f"<[{tokens[piece]}]>" if piece in tokens else _quoted(piece) for piece in pieces if piece)


def _splitter(tokens: Mapping[str, int]) -> re.Pattern[str]:
    """Splits a text at the tokens' spellings."""
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _opening(form: CallForm) -> str:
    """All that is written before the calls of a section."""
    return (form.lead if isinstance(form, TaggedCalls) else "") + form.open


def _json_head(form: JsonCalls, name: str) -> str:
    """An object up to the call's arguments, as part of a rule."""
    called = json.dumps(name, ensure_ascii=False)
    if form.by_name:
        return _quoted(f"{{{called}: ")
    head = _quoted(f"{json.dumps(form.name)}: {called}, {json.dumps(form.arguments)}: ")
    number = f'{_quoted(json.dumps(form.id) + ": ")} /"[0-9]{{1,3}}", /' if form.id else ""
    return f'"{{" {number} {head}'


def _layout(form: CallForm) -> tuple[bool, str, str, str]:
    """Whether calls share a section; what stands before them, between two calls or sections, and after them.

    What stands between is text, the rest part of a rule.
    """
    match form:
        case JsonCalls(is_list=True):
            return True, '"["', ", ", '"]"'
        case JsonCalls():
            inside = f"{_quoted(form.inside)}?" if form.inside else ""
            return False, inside, form.between, inside
        case NamedJsonCalls():
            return bool(form.call_open), "", form.between, ""
        case TaggedCalls() | NestedCalls():
            space, shares = (form.space, form.shares_section) if isinstance(form, TaggedCalls) else ("\n", True)
            before = _quoted(space) if form.call_open else ""
            return shares, before, space, _space(form) if isinstance(form, TaggedCalls) else _quoted(space)
        case BareKeyCalls():
            return False, "", "", ""
        case PythonCalls():
            return True, *(('"["', ", ", '"]"') if form.is_list else ("", "\n", ""))


def _space(form: TaggedCalls) -> str:
    """What stands between the tags of a call, as part of a rule."""
    return f"{_quoted(form.space)}?" if form.is_loose and form.space else _quoted(form.space)


def _arguments(schema: Schema) -> Iterator[tuple[str, Any, bool]]:
    """Names, schemas, and whether they have to be there."""
    required = schema.get("required", ()) if isinstance(schema, dict) else ()
    for name, part in parameters_of(schema).items():
        yield name, part, name in required


def _is_open(schema: Schema) -> bool:
    """Whether arguments are taken that the schema does not name."""
    if not isinstance(schema, dict):
        return schema
    composed = any(key in schema for key in ("anyOf", "oneOf", "allOf", "$ref", "patternProperties"))
    return composed or bool(schema.get("additionalProperties"))


def _with_definitions(part: Any, root: Schema) -> Schema:
    """The part of a schema with what it may refer to."""
    if not isinstance(part, dict) or not isinstance(root, dict):
        return part if isinstance(part, dict | bool) else True
    return {**{key: root[key] for key in ("$defs", "definitions") if key in root}, **part}


def _python_value(part: Any, root: Schema, depth: int = 8) -> str:
    """A literal that fits a schema, but for a number's bounds (an integer's hold) and a list's length."""
    part = followed(part, root)
    listed = list(map(_python_literal, known_values(part, root) or ()))
    if ways := listed or [_python_value(one, root, depth - 1) for one in alternatives(part) if depth]:
        return f"({' | '.join(ways)})"
    types = types_of(part, root)
    if not isinstance(part, Mapping) or len(types) != 1 or depth == 0:
        ways = sorted({_PYTHON_OF.get(name, "python") for name in types})
        return f"({' | '.join(ways)})" if ways else "python"
    match next(iter(types)):
        case "integer" if not part.keys().isdisjoint(_INTEGER[1:]):
            return "%json " + json.dumps({key: part[key] for key in part if key in _INTEGER})
        case "array" if "items" in part:
            item = _python_value(part["items"], root, depth - 1)
            return f'("[" ({item} (", " {item})*)? "]")'
        case "object" if parameters_of(part):
            fields = [
                (
                    f'({_quoted(json.dumps(key))} | {_quoted(repr(key))}) ": " {_python_value(one, root, depth - 1)}',
                    needed,
                )
                for key, one, needed in _arguments(dict(part))
            ]
            return f'("{{" {_separated(fields)} "}}")'
        case name:
            return _PYTHON_OF.get(name, name)


def _python_literal(value: Any) -> str:
    """A value as Python writes it, texts in either kind of quotes."""
    match value:
        case str():
            ways = dict.fromkeys((json.dumps(value, ensure_ascii=False), repr(value)))
            return f"({' | '.join(map(_quoted, ways))})"
        case list():
            return _bracketed("[", list(map(_python_literal, value)), ", ", "]")
        case dict():
            fields = [f'{_python_literal(key)} ": " {_python_literal(item)}' for key, item in value.items()]
            return _bracketed("{", fields, ", ", "}")
    return _quoted(repr(value))


def _bracketed(opening: str, items: Sequence[str], comma: str, closing: str) -> str:
    return " ".join([_quoted(opening), f" {_quoted(comma)} ".join(items), _quoted(closing)])


def _separated(parts: Sequence[tuple[str, bool]], comma: str = ", ") -> str:
    """Arguments, each with whether it is needed, with commas between those that are there."""
    ways = []
    for first, (text, needed) in enumerate(parts):
        rest = [f"({_quoted(comma)} {other}){'' if is_needed else '?'}" for other, is_needed in parts[first + 1 :]]
        ways.append(" ".join([text, *rest]))
        if needed:
            return f"({' | '.join(ways)})"
    return f"({' | '.join(ways)})?" if ways else ""


def _string(text: TextGrammar) -> str:
    """A string with quotes, the same in JSON and in Python."""
    return f'"\\"" %lark {{\n{within_json(text)}\n}} "\\""'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _regex(text: str) -> str:
    return re.escape(text).replace("/", r"\/").replace("\n", "n").replace("\\ ", " ")

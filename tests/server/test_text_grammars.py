"""Grammars of texts bind them as calls have them, escaped or as they are: what fits, fits, and nothing else does."""

import json
from functools import cache
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from chat_templates.tool_forms.form import CallForm, PythonCalls, tags_of
from chat_templates.tool_forms.known import FORMS
from server.core.call_rules import CallRules
from server.core.grammar_jobs import TextGrammar
from server.core.grammars import of_schema
from server.core.text_grammars import within_json
from tests.chat_templates.tool_forms.forms import opening, written
from tests.chat_templates.tool_forms.test_reader import read

BYTES = LLTokenizer("byte")
PATCH = """start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"""
"""OpenAI's example, with which Codex offers `apply_patch`."""
SUM = """// a sum
start: expr
expr: term (SIGN term)*
SIGN.2: "+" | "-"
term: NUMBER | "(" expr ")" | WORD
WORD: /[a-z]+/i
%import common (NUMBER, WS)
%ignore WS
"""
QUOTED = r"""start: ESCAPED_STRING | "say \"hi\"\n"i | HEX
HEX: ("a".."f" | "0".."9")+
%import common.ESCAPED_STRING
"""


SCHEMA: dict[str, Any] = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


@cache
def rules_of(name: str, grammar: str, kind: Literal["lark", "regex"]) -> str:
    """For one call of a tool in the form of that name."""
    texts = {"write": TextGrammar(kind, grammar)}
    return f"start: calls\n{CallRules(FORMS[name], [('write', SCHEMA)], {}, of_schema, texts).text(several=False)}"


def call(name: str, text: str) -> str:
    """A call with that input, as a model writes it in the form."""
    form = FORMS[name]
    if isinstance(form, PythonCalls):  # with the quotes that the grammar wants
        made = f"write(input={json.dumps(text, ensure_ascii=False)})"
        return f"{form.open}{f'[{made}]' if form.is_list else made}{form.close}"
    return opening(form) + written(form, [("write", {"input": text})])


def takes(grammar: str, text: str, name: str = "hermes", kind: Literal["lark", "regex"] = "lark") -> bool:
    """Whether a call with that input fits."""
    matcher = LLMatcher(BYTES, rules_of(name, grammar, kind), log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    data = list(call(name, text).encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


ONE_OF_EACH_KIND = ["hermes", "deepseek-v3", "qwen3-coder", "glm", "pythonic"]


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
@pytest.mark.parametrize(
    ("grammar", "text", "fits"),
    [
        (PATCH, '*** Begin Patch\n*** Add File: a "b"\\c.txt\n+é\t\\n"\x01\n+\n*** End Patch', True),
        (PATCH, "*** Begin Patch\n*** Update File: q\n*** Move to: r\n@@ def f():\n-a\n+b\n c\n*** End Patch\n", True),
        (PATCH, "*** Begin Patch\n*** Delete File: q\n*** End Patch", True),
        (PATCH, "*** Begin Patch\n*** End Patch", False),
        (PATCH, "*** Begin Patch\n*** Delete File: \n*** End Patch", False),
        (PATCH, "*** Begin Patch\n*** Update File: q\nno sign\n*** End Patch", False),
        (SUM, "1 +\n\t(2.5 - Ab)", True),
        (SUM, "1 + + 2", False),
        (QUOTED, r'"a\"b\\"', True),
        (QUOTED, '"a"b"', False),
        (QUOTED, 'SAY "hI"\n', True),
        (QUOTED, "a0f", True),
        (QUOTED, "g", False),
        (r"start: /[^\x00-\x1f]+/", '"\\é한', True),
        (r"start: /[^\x00-\x1f]+/", "a\nb", False),
        (r"start: /\d{2,3}\s\S\w?/", '12\t"', True),
        (r"start: /\d{2,3}\s\S\w?/", "1 a", False),
        ("start: /a.b/s", "a\nb", True),
        ("start: /a.b/", "a\nb", False),
        (r"start: /(.|\n)+/", "<b>1 </p>\n</div>\n", True),
        ('start: "<a>" /[^<]*/ "</a>"', "<a>b>\n</a>", True),
        ('start: "<a>" /[^<]*/ "</a>"', "<a>b", False),
    ],
)
def test_what_fits(name: str, grammar: str, text: str, fits: bool) -> None:
    assert takes(grammar, text, name) is fits


@pytest.mark.parametrize("name", FORMS)
def test_in_every_form_a_pattern_binds_and_what_fits_is_read_back(name: str) -> None:
    pattern, form = r"ab|[0-9]{2}[\"\\\n]+", FORMS[name]
    for text in ("ab", '12"\\\n"'):
        assert takes(pattern, text, name, "regex"), text
        assert read_back(form, call(name, text)) == text
    for text in ("a", "abc", "12", "123"):
        assert not takes(pattern, text, name, "regex"), text


@pytest.mark.parametrize("name", FORMS)
def test_in_every_form_a_patch_binds_and_is_read_back(name: str) -> None:
    patch = '*** Begin Patch\n*** Add File: a "b"\\c.txt\n+<é>\t\\n"\n*** End Patch'
    assert takes(PATCH, patch, name)
    assert read_back(FORMS[name], call(name, patch)) == patch
    assert not takes(PATCH, patch.replace("Begin", "Open"), name)


# Harmony's calls are messages with a header of tokens: its free answers are held in tests/server/test_harmony.py.
@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.open and name != "harmony"])
def test_a_text_that_is_bound_in_a_call_that_may_come_or_not(name: str) -> None:
    form = FORMS[name]
    tags = [tag for tag in tags_of(form) if tag.startswith(("<", "["))]
    texts = {"write": TextGrammar("lark", PATCH)}
    for tokens in ({}, {tag: 100 + index for index, tag in enumerate(tags)}):
        rules = CallRules(form, [("write", SCHEMA)], tokens, of_schema, texts).text(several=True, is_free=True)
        matcher = LLMatcher(BYTES, f"start: calls\n{rules}", log_level=0)
        assert not matcher.get_error(), matcher.get_error()
        assert matcher.try_consume_tokens(list(b"No call.")) == len(b"No call.")
        assert matcher.is_accepting()


def read_back(form: CallForm, text: str) -> object:
    """The input of the one call."""
    (found,), complete, _ = read(form, list(text.removeprefix(opening(form))), {"write": SCHEMA})
    assert complete == [True]
    return found[1]["input"]


@given(st.text(alphabet=st.sampled_from('ab"\\\n\t\x01é'), max_size=6))
def test_any_text_fits_any_pattern_that_takes_it(text: str) -> None:
    assert takes(r"start: /(.|\n)*/", text)
    assert takes(r'start: (/[^"a]/ | /["a]/)*', text)
    assert takes('start: /[a"\\n]*/', text) is all(character in 'a"\n' for character in text)


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        ("start: %json {}", "%json is not supported"),
        ("start: <think>", "< is not supported"),
        ("start: /(?=a)b/", "assert is not supported"),
        (r"start: /\p{L}/", "is not supported here"),
        ("start: /a++(/", "is not supported here"),
        ("start: C_COMMENT\n%import common.C_COMMENT", "common.C_COMMENT is not supported"),
        (r'start: "\q"', "is no string"),
    ],
)
def test_what_has_no_such_form_is_refused(grammar: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".*") as raised:
        within_json(TextGrammar("lark", grammar))
    assert said in str(raised.value)

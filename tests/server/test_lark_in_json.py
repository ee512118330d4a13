"""Lark grammars of texts bind the texts as JSON has them: what fits, fits escaped, and nothing else does."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from server.core.grammars import of_schema
from server.core.lark_in_json import KEY, within_json

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


def takes(grammar: str, text: str) -> bool:
    """Whether the arguments with that input fit."""
    rule = of_schema({"type": "object", "properties": {"input": {"type": "string", KEY: grammar}}})
    matcher = LLMatcher(BYTES, f"start: arguments\narguments: {rule}", log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    data = json.dumps({"input": text}, ensure_ascii=False)
    ids = BYTES.tokenize_str(data)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


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
    ],
)
def test_what_fits(grammar: str, text: str, fits: bool) -> None:
    assert takes(grammar, text) is fits


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
        within_json(grammar)
    assert said in str(raised.value)

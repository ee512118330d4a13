"""Hypothesis strategies: text with whole, partial and split control tokens, and messages full of such text."""

from typing import Any

from hypothesis import strategies as st

from chat_templates.tokens import TAGS

_INNER = ["think", "tool_call", "user", "endofturn", "|", "/", "[", "]", "<", ">", "[|", "|]", "</", "endof", "turn|]"]


@st.composite
def _tag_pieces(draw: st.DrawFn) -> str:
    tag = draw(st.sampled_from(TAGS))
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(tag))] * 2)))
    return tag[start:end]


hostile_text = st.lists(
    st.one_of(
        st.sampled_from(TAGS),
        _tag_pieces(),
        st.sampled_from(
            [*_INNER, "\n", " ", "\n\n", "\r\n", "Hello", " the", '"', "\\", "{", "}}", "한", "😀", "e\u0301"]
        ),
        st.text(max_size=4),
        st.sampled_from(["\ud800", "\udc80", "\udc81", "\x00", "\ufffd", "\ue000", "\u2581"]),
    ),
    max_size=8,
).map("".join)

json_values = st.recursive(
    st.one_of(hostile_text, st.none(), st.booleans(), st.integers(-99, 99)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(hostile_text, inner, max_size=3)),
    max_leaves=6,
)
json_objects = st.dictionaries(hostile_text, json_values, max_size=3)

contents = st.one_of(
    hostile_text,
    st.lists(hostile_text.map(lambda text: {"type": "text", "text": text}), max_size=4),
)


def _named(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(fields, optional={"name": hostile_text})


calls = st.fixed_dictionaries(
    {
        "id": hostile_text,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": hostile_text.filter(bool), "arguments": json_objects}),
    }
)
messages = st.lists(
    st.one_of(
        _named({"role": st.sampled_from(["system", "developer", "user"]), "content": contents}),
        _named({"role": st.just("tool"), "content": contents, "tool_call_id": hostile_text}),
        _named(
            {
                "role": st.just("assistant"),
                "content": st.one_of(st.none(), contents),
                "tool_calls": st.lists(calls, max_size=2),
            }
        ),
    ),
    min_size=1,
    max_size=5,
)
tools = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": hostile_text.filter(bool)},
                optional={"description": hostile_text, "parameters": json_objects, "strict": st.booleans()},
            ),
        }
    ),
    max_size=2,
)

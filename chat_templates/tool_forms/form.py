"""What a family's tool calls look like, as data: the `calls` of a profile.

A generation has sections of calls. `open` begins one and `close` ends it, or the end of the turn where that is empty.
Every tag may be a token of its own or ordinary text. In the forms' pictures `…` stands for what repeats.
"""

from collections.abc import Mapping
from typing import Any

import msgspec


class JsonCalls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="json", tag_field="kind"):
    """`open {"name": NAME, "arguments": {…}} close`, or a list of such objects.

    `name` and `arguments`: the keys that are written; "name" and "tool_name", "arguments" and "parameters" are read.
    `id`: the key of the call's number in its list, which is written before the name; read, not told. `by_name`:
    instead, an object is `{NAME: {…}}`. `is_list`: whether a list is written. `inside`: white space that the model may
    write next to the tags. `between`: what stands between sections.
    """

    open: str = "<tool_call>"
    close: str = "</tool_call>"
    name: str = "name"
    arguments: str = "arguments"
    id: str = ""
    by_name: bool = False
    is_list: bool = False
    inside: str = ""
    between: str = "\n"


class NamedJsonCalls(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="named-json", tag_field="kind"
):
    """`open call_open NAME name_end {…} call_close … close`.

    `name_prefix`: what the model writes before the name. `is_numbered`: a colon and the call's number follow it.
    `id_open`: what stands before an id of the model's, between name and `name_end`; read, not written. `answer_open`:
    what begins an answer where every message has a header, as in harmony: there a call ends the turn.
    """

    open: str
    close: str = ""
    call_open: str = ""
    name_end: str
    call_close: str = ""
    name_prefix: str = ""
    is_numbered: bool = False
    id_open: str = ""
    between: str = ""
    answer_open: str = ""


class TaggedCalls(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="tagged", tag_field="kind"
):
    """`open call_open NAME name_end param_open KEY key_end VALUE param_close … call_close … close`.

    Values have no quotes: the tool's schema says which are text, or, with `text_key_end`, the end of the key does:
    that for text, `key_end` for JSON. One line break at each end of a text belongs to the tags if `trims`. `space`: the
    white space that is written between the tags. `shares_section`: whether several calls are written in one section,
    not in one each. `index_open`: what stands between a call's name and its number, counted from 1, before `name_end`.
    `is_loose`: some of the family's models leave out the line breaks between the tags: they may be there or not.
    `json_key_ends`: what else ends the key of a value in JSON, for the types that it is of. `lead`: what a model writes
    before a section.
    """

    open: str
    close: str
    call_open: str
    name_end: str
    call_close: str
    param_open: str
    key_end: str
    param_close: str
    text_key_end: str = ""
    trims: bool = False
    space: str = "\n"
    shares_section: bool = False
    index_open: str = ""
    is_loose: bool = False
    json_key_ends: dict[str, str] = {}
    lead: str = ""

    @property
    def key_ends(self) -> tuple[str, ...]:
        """`key_end` in all its spellings."""
        return tuple(dict.fromkeys((self.key_end, self.key_end.replace("\n", "") if self.is_loose else self.key_end)))


class NestedCalls(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="nested", tag_field="kind"
):
    """`open call_open NAME name_end mark<KEY>VALUE mark</KEY> … call_close … close`, several calls in one section.

    A value that is an object is written as such keys and values, a list as values with `item` for a key. Other values
    have no quotes: the tool's schema says which are text. `mark` ends a text.
    """

    open: str
    close: str
    mark: str
    call_open: str
    name_end: str
    call_close: str
    item: str = "item"


class BareKeyCalls(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="bare-keys", tag_field="kind"
):
    """`open call_open NAME{KEY:VALUE,…} close`: JSON but for its texts, which stand between two of `quote`, and for its
    keys, which have no quotes. A quote in a text ends it.
    """

    open: str
    close: str
    call_open: str
    quote: str


class PythonCalls(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="python", tag_field="kind"
):
    """`open [NAME(KEY=VALUE, …), …] close`, values as Python's literals; the brackets only if `is_list`."""

    open: str = ""
    close: str = ""
    is_list: bool = True


CallForm = JsonCalls | NamedJsonCalls | TaggedCalls | NestedCalls | BareKeyCalls | PythonCalls


def tags_of(form: CallForm) -> tuple[str, ...]:
    """The texts of the form that may be tokens of their own, without those that are empty."""
    names = {"open", "close", "call_open", "name_end", "call_close", "param_open", "key_end", "param_close"}
    names |= {"lead", "index_open", "mark", "text_key_end", "id_open", "answer_open", "quote"}
    texts = (getattr(form, name) for name in form.__struct_fields__ if name in names)
    return tuple(text for text in texts if text)


def with_stand_ins(form: CallForm, stand_ins: Mapping[str, str]) -> CallForm:
    """The form with each spelling of a token in its tags replaced by the character that stands for the token."""
    changed: dict[str, Any] = {}
    for name in form.__struct_fields__:
        value = getattr(form, name)
        if isinstance(value, str):
            changed[name] = _with_stand_ins(value, stand_ins)
        elif isinstance(value, dict):
            changed[name] = {key: _with_stand_ins(text, stand_ins) for key, text in value.items()}
    return msgspec.structs.replace(form, **changed)


def _with_stand_ins(text: str, stand_ins: Mapping[str, str]) -> str:
    for spelling, character in stand_ins.items():
        text = text.replace(spelling, character)
    return text

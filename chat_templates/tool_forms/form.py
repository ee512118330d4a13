"""What a family's tool calls look like, as data: the `calls` of a profile.

A generation has sections of calls. `open` begins one and `close` ends it, or the end of the turn where that is empty.
Every tag may be a token of its own or ordinary text. In the forms' pictures `…` stands for what repeats.
"""

from collections.abc import Mapping
from typing import Any

import msgspec


class JsonCalls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="json", tag_field="kind"):
    """`open {"name": NAME, "arguments": {…}} close`, or a list of such objects.

    `arguments`: the key that is written; "arguments" and "parameters" are both read. `is_list`: whether a list is
    written. `inside`: white space that the model may write next to the tags. `between`: what stands between sections.
    """

    open: str = "<tool_call>"
    close: str = "</tool_call>"
    arguments: str = "arguments"
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
    not in one each.
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


class BareKeyCalls(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="bare-keys", tag_field="kind"
):
    """`open call_open NAME{KEY:VALUE,…} close`, values in JSON but for its texts, which stand between two of `quote`, and
    for its keys, which have no quotes. A quote in a text ends it.
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


CallForm = JsonCalls | NamedJsonCalls | TaggedCalls | BareKeyCalls | PythonCalls


def tags_of(form: CallForm) -> tuple[str, ...]:
    """The texts of the form that may be tokens of their own, without those that are empty."""
    names = {"open", "close", "call_open", "name_end", "call_close", "param_open", "key_end", "param_close"}
    names |= {"text_key_end", "id_open", "answer_open", "quote"}
    texts = (getattr(form, name) for name in form.__struct_fields__ if name in names)
    return tuple(text for text in texts if text)


def with_stand_ins(form: CallForm, stand_ins: Mapping[str, str]) -> CallForm:
    """The form with each spelling of a token in its tags replaced by the character that stands for the token."""
    changed: dict[str, Any] = {}
    for name in form.__struct_fields__:
        value = getattr(form, name)
        if isinstance(value, str):
            for spelling, character in stand_ins.items():
                value = value.replace(spelling, character)
            changed[name] = value
    return msgspec.structs.replace(form, **changed)

"""The form of a checkpoint's tool calls: how it is found, and which of its tags are tokens of the tokenizer."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from chat_templates.settings import FormatSettings
from chat_templates.tool_forms.form import CallForm, JsonCalls, NamedJsonCalls, tags_of, with_stand_ins
from chat_templates.tool_forms.known import FORMS, HERMES, form_in

_FIRST_MARK = 0xDC00


def form_name(settings: FormatSettings, template: str, tokens: Iterable[str]) -> str:
    """The form that a profile names, or else the one that a template or the tokens tell; Hermes' where they do not."""
    return settings.calls or form_in(template, tokens) or HERMES


def form_of(settings: FormatSettings, name: str) -> CallForm:
    """The form of that name; the tags of Hermes' are a profile's to set."""
    if name != HERMES:
        return FORMS[name]
    return JsonCalls(open=settings.tool_call, close=settings.tool_call_end, inside=settings.inside_tool_call)


@dataclass(frozen=True)
class CallTags:
    """A form of calls with one tokenizer.

    `ids`: of the tokens in the form's tags, by their spellings. `marked` is the form with a character in place of each
    such token, and `marks` are these characters by the tokens' ids, `spellings` the spellings by the characters'
    numbers. No text can hold these characters.
    """

    form: CallForm
    ids: Mapping[str, int]
    marked: CallForm
    marks: Mapping[int, str]
    spellings: Mapping[int, str]

    @classmethod
    def of(cls, form: CallForm, control: Mapping[str, int]) -> "CallTags":
        """`control`: the ids of control tokens by their spellings."""
        tags = tags_of(form)
        within = sorted((text for text in control if any(text in tag for tag in tags)), key=len, reverse=True)
        characters = {text: chr(_FIRST_MARK + index) for index, text in enumerate(within)}
        marked = with_stand_ins(form, characters)
        used = {text: char for text, char in characters.items() if any(char in tag for tag in tags_of(marked))}
        return cls(
            form=form,
            ids={text: control[text] for text in used},
            marked=marked,
            marks={control[text]: char for text, char in used.items()},
            spellings={ord(char): text for text, char in used.items()},
        )

    @property
    def answer_open(self) -> str:
        """What begins an answer where every message has a header; empty elsewhere."""
        return self.form.answer_open if isinstance(self.form, NamedJsonCalls) else ""

    @property
    def open_text(self) -> str:
        """The opening tag, marked, where it is not one token; "" where it is, or where there is none."""
        opening = self.marked.open
        return "" if len(opening) == 1 and ord(opening) in self.spellings else opening

    @property
    def holds_marks(self) -> bool:
        """Whether the opening tag is made of text and tokens."""
        return any(ord(char) in self.spellings for char in self.open_text)

    def in_marks(self, tag: str) -> str:
        """Another tag, with the characters for the tokens that it shares with the form."""
        for mark, spelling in self.spellings.items():
            tag = tag.replace(spelling, chr(mark))
        return tag

    def unmarked(self, text: str) -> str:
        """Text without the characters that stand for tokens."""
        return text if text.isascii() else re.sub("[\udc00-\udcff]", "", text)

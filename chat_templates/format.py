"""The chat format with one tokenizer: conversations to ids (prompts, and training text with a loss mask), ids to text.

Sampling, budgets and HTTP are not known here; understanding what a model generates is parser.py's part.
"""

import re
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from chat_templates.call_tags import CallTags, form_name, form_of
from chat_templates.checkpoint import CheckpointTemplate, read_template
from chat_templates.client_text import plain
from chat_templates.detokenizer import Detokenizer, make_detokenizer
from chat_templates.errors import FormatError
from chat_templates.messages import Message, Tool, Turn, check_messages, check_tools
from chat_templates.response_tags import NO_TAGS
from chat_templates.settings import DIRECT, THINKING, FormatSettings, PromptStyle
from chat_templates.templates import CUT, ChatTemplate, NoTemplate, OwnTemplates
from chat_templates.think_again import AnswerText, ChannelAgain, TagAgain, ThinkAgain
from chat_templates.think_end import MixedEnd, TextEnd, ThinkEnd, TokenEnd
from chat_templates.thinking_probe import Switch, is_closed, is_open
from chat_templates.tokens import ASSISTANT, END_OF_TURN, Vocabulary, added_spellings
from chat_templates.tool_forms.form import tags_of
from chat_templates.tool_forms.known import HERMES

NO_TOKEN = -1
"""In place of the id of a tag that the tokenizer has as ordinary text."""


class Closing(NamedTuple):
    """The ids that end a thinking for the model: what is said last in it, the end tag, and what follows the tag."""

    last_words: list[int]
    tag: list[int]
    separator: list[int]


class ChatFormat:
    r"""Renders and reads the format with one tokenizer.

        fmt = ChatFormat.from_folder(Path("models/twogear-tiny"))
        ids = fmt.render([{"role": "user", "content": "Hi"}], THINKING)
        fmt.decode(ids, show_control=True)  # '[|user|]\nHi[|endofturn|]\n[|assistant|]\n<think>\n'

    Client text never becomes a control token, and control tokens never come back as text. Our own templates have no
    place for `name` fields.

    With a `template` the format is that of a checkpoint, with the tags of its settings; without, it is our own. The ids
    of tags are NO_TOKEN where the tokenizer has them as ordinary text, or as text and tokens: these are the
    `text_tags`. `tag_ids`: the tokens in the tags of thinking and in headers; text between one of `header_starts` and
    one of `header_ends` is part of a tag. `has_channels`: whether what is generated are messages with headers, as in
    harmony. `calls`: the form of tool calls, that of the checkpoint. `has_thinking`: whether the model can think.
    `switch`: how a checkpoint's template is told to, and `variables` what else it can be told; none for our own.
    `toggles`: whether the template itself makes a difference between the two. `can_chat`: whether there is any
    template. `is_foreign`: whether there is a template of a checkpoint; `source` is its text, and
    `response` are the tags that the checkpoint's response template names.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        template: CheckpointTemplate | NoTemplate | None = None,
        settings: FormatSettings | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.control_ids = vocabulary.control_ids
        self.settings = settings or (FormatSettings() if template is None else template.settings)
        tags = self.settings
        self.think_id = self._id(tags.think)
        self.think_end_id = self._id(tags.think_end)
        self.calls = CallTags.of(form_of(tags, tags.calls or HERMES), vocabulary.control)
        self.tool_call_id = self._id(self.calls.form.open)
        self.tool_call_end_id = self._id(self.calls.form.close)
        self.end_of_turn_id = self._id(END_OF_TURN if template is None else template.end_of_turn)
        self.hidden_ids = frozenset(map(self._id, tags.hidden)) - {NO_TOKEN}
        self.text_tags = [tag for tag in tags.tags if self._id(tag) == NO_TOKEN]
        self.has_channels = bool(self.calls.answer_open)
        within = (i for text, i in vocabulary.control.items() if any(text in tag for tag in self.text_tags))
        self.tag_ids = frozenset((self.think_id, self.think_end_id, *within)) - {NO_TOKEN}
        if self.has_channels:
            self.tag_ids |= self.calls.marks.keys()
        mixed = [ids for tag in (*self.text_tags, self.calls.answer_open) if len(ids := self._tag_ids(tag)) > 1]
        self.header_starts = frozenset(ids[0] for ids in mixed) & self.control_ids
        self.header_ends = frozenset(ids[-1] for ids in mixed) & self.control_ids
        self.is_foreign = template is not None
        self.can_chat = not isinstance(template, NoTemplate)
        self.toggles = template is None or template.toggles
        self.source = "" if template is None else template.source
        self.response = template.response if isinstance(template, CheckpointTemplate) else NO_TAGS
        self._template: ChatTemplate = template or OwnTemplates()
        self.has_thinking = self._template.has_thinking
        self.switch = Switch() if template is None else template.switch
        self.variables: frozenset[str] = frozenset() if template is None else template.variables
        self._closes_thinking = template is not None and template.closes_thinking
        spellings = sorted(vocabulary.written, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, (CUT, *spellings))) + ")")

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        settings: FormatSettings | None = None,
        template: Path | None = None,
        styles: Sequence[PromptStyle] = (DIRECT, THINKING),
    ) -> "ChatFormat":
        """The format of the checkpoint in `folder`: by its own template, or by the file `template`; else ours, if its
        tokenizer has the tokens of that; else one that cannot chat.

        `styles` are those that prompts will be rendered in.
        Raises FileNotFoundError without a tokenizer.json, other OSError for files that cannot be read, ValueError (most
        often FormatError) for what is in them.
        """
        tokenizer = (folder / "tokenizer.json").read_text(encoding="utf-8")
        files = read_template(folder, template, settings)
        if files is None:
            OwnTemplates().check(styles)
            try:
                return cls(Vocabulary(tokenizer))
            except FormatError:
                return cls(Vocabulary(tokenizer, required=()), NoTemplate())
        checkpoint = CheckpointTemplate(files, settings or FormatSettings(), styles, added_spellings(tokenizer))
        return cls.of_checkpoint(tokenizer, checkpoint)

    @classmethod
    def of_checkpoint(cls, tokenizer_json: str, template: CheckpointTemplate) -> "ChatFormat":
        """The format of a checkpoint with this template. Raises FormatError."""
        name = form_name(template.settings, template.source, added_spellings(tokenizer_json))
        settings = replace(template.settings, calls=name)
        tags = (*settings.tags, *tags_of(form_of(settings, name)))
        return cls(Vocabulary(tokenizer_json, required=(), tags=tags, template=template.source), template, settings)

    def restyled(
        self, folder: Path, template: Path | None = None, styles: Sequence[PromptStyle] = (DIRECT, THINKING)
    ) -> "ChatFormat":
        """The same tokenizer with the templates as they are in their files now, for these `styles`.

        Raises OSError and FormatError, as `from_folder`, and where it would be another kind of format.
        """
        files = read_template(folder, template, self.settings)
        if (files is not None) != (self.is_foreign and self.can_chat):
            raise FormatError("the checkpoint has a chat template now, or has none any more", "chat_template")
        if files is None:
            OwnTemplates().check(styles)
            return ChatFormat(self.vocabulary, NoTemplate() if not self.can_chat else None)
        checkpoint = CheckpointTemplate(files, self.settings, styles, self.vocabulary.added)
        return ChatFormat(self.vocabulary.for_template(checkpoint.source), checkpoint)

    def render(
        self,
        messages: Sequence[Message],
        style: PromptStyle,
        tools: Sequence[Tool] = (),
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """The prompt's ids, ending with the style's generation prompt: it opens a think block or leaves none open, also
        where a checkpoint's template leaves either to the model.

        Reasoning of past assistant turns is dropped; a checkpoint's template may keep it. `continue_final_message`
        leaves the last message, an assistant's, open to be continued instead: in a style that thinks, after its
        `reasoning_content` if it has no content yet.
        Raises FormatError.
        """
        turns = check_messages(messages)
        if continue_final_message and turns[-1]["role"] != "assistant":
            raise FormatError("only an assistant message can be continued", f"messages[{len(turns) - 1}].role")
        add_generation_prompt = add_generation_prompt and not continue_final_message
        pieces = self._pieces(
            turns, style, tools, add_generation_prompt=add_generation_prompt, is_open=continue_final_message
        )
        try:
            return [token_id for piece in pieces if piece is not None for token_id in piece]
        except UnicodeEncodeError as error:
            raise FormatError("this model's chat template writes what is no Unicode text", "messages") from error

    def render_conversation(
        self, messages: Sequence[Message], style: PromptStyle, tools: Sequence[Tool] = ()
    ) -> tuple[list[int], list[bool]]:
        r"""The ids of a conversation that ends with an assistant turn, and for each whether the model learns it.

        Learnt is what the model has to generate, up to and including the end of the turn: the answer, and where it
        thinks the `reasoning_content` and `\n</think>\n\n` before it. Without thinking that goes for every assistant
        turn, for each is just what would be generated; with thinking only for the last one, since past turns have lost
        their reasoning. `render` of the messages before the last is an exact prefix. Raises FormatError.
        """
        assert not self.is_foreign, "training text is in our own format"
        turns = check_messages(messages)
        last = len(turns) - 1
        if turns[last]["role"] != "assistant":
            raise FormatError("a conversation to learn from ends with an assistant message", f"messages[{last}].role")
        assistant_id = self.vocabulary.control[ASSISTANT]
        pieces = list(self._pieces(turns, style, tools, add_generation_prompt=False, is_open=False))
        last_turn = max(index for index, piece in enumerate(pieces) if piece == [assistant_id])
        ids: list[int] = []
        mask: list[bool] = []
        is_learnt = False
        for index, piece in enumerate(pieces):
            if piece is None:
                is_learnt = not style.opens_thinking or index > last_turn
                continue
            ids += piece
            mask += [is_learnt] * len(piece)
            is_learnt = is_learnt and piece != [self.end_of_turn_id]
        end = len(mask) - mask[::-1].index(True)
        return ids[:end], mask[:end]

    def encode_text(self, text: str) -> list[int]:
        """The ids of plain text; never a control token."""
        return self.vocabulary.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text to be gone on with as it is, with what the tokenizer puts before all text (BOS)."""
        return [*self.vocabulary.opening, *self.vocabulary.encode(text)]

    def close_thinking(self, wrap_up: str = "") -> list[int]:
        r"""The ids that end an open think block as the model itself would: `wrap_up` + `\n</think>\n\n`."""
        closing = self.closing(wrap_up)
        return [*closing.last_words, *closing.tag, *closing.separator]

    def closing(self, wrap_up: str = "") -> Closing:
        """The same in its parts."""
        words = self.encode_text(wrap_up + self.settings.before_think_end)
        return Closing(words, self._tag_ids(self.settings.think_end), self._tag_ids(self.settings.after_think_end))

    def think_end(self) -> ThinkEnd:
        """A new watch for the end of a thinking."""
        return self._watch(self.settings.think_end)

    def think_again(self) -> ThinkAgain | None:
        """A new watch, in the answer, for a thinking that opens again, or at all; None for a model that cannot think.

        In channels a message of thinking may follow any other. Elsewhere the tag opens one at the beginning of a line.
        """
        if not self.has_thinking:
            return None
        tag = self.settings.think
        if self.has_channels:
            return ChannelAgain(self._watch(tag), self._bare_closing)
        text = AnswerText(partial(self.decode, show_control=True), self.calls.form.open, self.settings.hidden)
        tag_id = None if self.think_id == NO_TOKEN else self.think_id
        return TagAgain(tag, tag_id, partial(self._watch, tag), text, self._bare_closing)

    def is_thinking_open(self, prompt_ids: Sequence[int]) -> bool:
        """Whether generation after this prompt starts inside a think block."""
        if self._holds_tokens(self.settings.think):
            last = next((at for at in range(len(prompt_ids), 0, -1) if prompt_ids[at - 1] in self.control_ids), 0)
            tag = self._tag_ids(self.settings.think)
            return list(prompt_ids[max(0, last - len(tag)) : last]) == tag
        tail: list[int] = []
        for token_id in reversed(prompt_ids):
            if token_id == self.think_id:
                return True
            if token_id in self.control_ids:
                break
            tail.append(token_id)
        return self.think_id == NO_TOKEN and self._is_open(self.decode(tail[::-1]))

    def decode(self, token_ids: Sequence[int], *, show_control: bool = False) -> str:
        """The text of the ids; control tokens are left out, or spelled out for a person to read."""
        detokenizer = self.detokenizer()
        texts = []
        for is_control, run in groupby(token_ids, self.control_ids.__contains__):
            if not is_control:
                texts += [detokenizer.feed(list(run)), detokenizer.flush()]
            elif show_control:
                texts += map(self.vocabulary.token_text, run)
        return "".join(texts)

    def detokenizer(self) -> Detokenizer:
        """A new incremental detokenizer."""
        return make_detokenizer(self.vocabulary)

    def _pieces(
        self,
        turns: list[Turn],
        style: PromptStyle,
        tools: Sequence[Tool],
        *,
        add_generation_prompt: bool,
        is_open: bool,
    ) -> Iterator[list[int] | None]:
        """The ids of the rendered pieces in order; None where a generation starts (see templates.CUT)."""
        if style.opens_thinking and not self.has_thinking:
            raise FormatError("this model does not think", "reasoning_mode")
        described = check_tools(tools)
        text = self._template.render(
            turns, style, described, add_generation_prompt=add_generation_prompt, is_open=is_open
        )
        if add_generation_prompt or (is_open and not style.opens_thinking):
            text += self._missing(text, style, begins=add_generation_prompt)
        pieces = self._split.split(text)  # plain ones and, at odd places, control tokens and CUTs
        vocabulary = self.vocabulary
        for index in range(1, len(pieces), 2):
            if pieces[index] in vocabulary.eats_before:
                pieces[index - 1] = pieces[index - 1].rstrip()
            if pieces[index] in vocabulary.eats_after:
                pieces[index + 1] = pieces[index + 1].lstrip()
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                yield vocabulary.encode(plain(piece), is_start=index == 0)
            else:
                yield None if piece == CUT else [vocabulary.written[piece]]

    def _id(self, spelling: str) -> int:
        return self.vocabulary.control.get(spelling, NO_TOKEN)

    def _watch(self, tag: str) -> ThinkEnd:
        """A new watch for the end of a tag."""
        if self._holds_tokens(tag):
            first, *within, last = self._tag_ids(tag)
            return MixedEnd(first, self.decode(within), last, self.detokenizer())
        token_id = self._id(tag)
        return TextEnd(tag, self.detokenizer()) if token_id == NO_TOKEN else TokenEnd(token_id)

    @cached_property
    def _bare_closing(self) -> tuple[int, ...]:
        """What ends a thinking without a word."""
        return tuple(self.close_thinking())

    def _holds_tokens(self, tag: str) -> bool:
        """Whether a tag is made of text and tokens; they begin and end it."""
        return self._id(tag) == NO_TOKEN and any(token in tag for token in self.vocabulary.control)

    def _tag_ids(self, tag: str) -> list[int]:
        """The ids of what is no client's text, tokens in it."""
        spellings = sorted((text for text in self.vocabulary.control if text in tag), key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, spellings))})", tag) if spellings else [tag]
        control = self.vocabulary.control
        return [i for piece in pieces for i in ([control[piece]] if piece in control else self.encode_text(piece))]

    def _missing(self, prompt: str, style: PromptStyle, *, begins: bool) -> str:
        """What the style wants at the end of a prompt and the template left out; `begins`: of a generation prompt."""
        tags = self.settings
        opening = tags.before_think + tags.think + tags.after_think
        closing = tags.before_think_end + tags.think_end + tags.after_think_end
        if self._is_open(prompt):
            return "" if style.opens_thinking else closing
        if style.opens_thinking:
            return opening
        return opening + closing if begins and self._closes_thinking and not is_closed(prompt, tags) else ""

    def _is_open(self, text: str) -> bool:
        return is_open(text, self.settings)

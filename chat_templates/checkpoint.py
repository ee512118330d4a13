"""The chat template that a checkpoint brings: found in its folder, and run on conversations as transformers would.

The text comes out as the template wrote it; which of it is a control token is `format`'s to find.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Template, meta

from chat_templates.client_text import protect, protect_all
from chat_templates.environment import Environment
from chat_templates.errors import FormatError
from chat_templates.limits import TooSlowError
from chat_templates.messages import Call, Turn, check_messages, check_variables
from chat_templates.one_call import with_one_call
from chat_templates.response_tags import NO_TAGS, ResponseTags
from chat_templates.settings import DIRECT, FAMILIES, THINKING, FormatSettings, PromptStyle
from chat_templates.templates import compiling, rendered
from chat_templates.thinking_probe import SHARED_ENDS, find_switch, is_closed, with_found_tags

END = "\udc82"
"""Put after the text that shall be gone on with, so that its end is found in what the template made of it."""
NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")
OURS = frozenset((*NAMED_TOKENS, "messages", "tools", "documents", "add_generation_prompt", "continue_final_message"))
"""Variables of a template that are the server's to set."""
TRIED = check_messages([{"role": "user", "content": "Is 1 + 1 = 2?"}])
"""The conversation by which it is found out what a template does."""
PAST_THINKING = ("reasoning_content", "reasoning", "thinking")
"""The names under which templates look for the thinking of past turns."""


@dataclass(frozen=True)
class TemplateFiles:
    """What a folder says: the template, another for requests with tools if it has one, and the spellings of the tokens
    that templates know by name; and the tags that its response template names.
    """

    source: str
    tool_source: str | None
    named_tokens: Mapping[str, str]
    response: ResponseTags = NO_TAGS


def read_template(
    folder: Path, chosen: Path | None = None, settings: FormatSettings | None = None
) -> TemplateFiles | None:
    """The folder's own template, or the one in the file `chosen`; else that of its family; None if there is none.

    Raises OSError, or ValueError where a file is not what it should be.
    """
    config = _json_object(folder / "tokenizer_config.json")
    named = {name: spelling for name in NAMED_TOKENS if (spelling := _spelling(config.get(name)))}
    response = ResponseTags.of(config.get("response_template"))
    file = chosen or folder / "chat_template.jinja"
    if chosen is not None or file.is_file():
        return TemplateFiles(_text(file), None, named, response)
    found = config.get("chat_template") or _json_object(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several, each with a name
        try:
            by_name = {entry.name: entry.template for entry in msgspec.convert(found, list[_NamedTemplate])}
        except msgspec.ValidationError as error:
            raise ValueError(f"chat_template: {error}") from error
        if "default" not in by_name:
            raise ValueError("the checkpoint has several chat templates and none is named default")
        return TemplateFiles(by_name["default"], by_name.get("tool_use"), named, response)
    if found is not None and not isinstance(found, str):
        raise ValueError("chat_template must be a text or a list")
    if not found and settings is not None and settings.template is not None:
        return TemplateFiles(_text(FAMILIES[settings.template]), None, named, response)
    return TemplateFiles(found, None, named, response) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"the chat template {path} is no text in UTF-8") from error


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must be a JSON object")  # noqa: TRY004 - of a file, not of an argument
    return value


def _spelling(token: Any) -> str | None:
    """A token by itself, or with its properties around it."""
    spelling = token.get("content") if isinstance(token, dict) else token
    return spelling if isinstance(spelling, str) else None


class CheckpointTemplate:
    """A checkpoint's template, or the file that a style names instead, with the style's variables.

    `response`: the tags that the checkpoint's response template names.
    `tokens`: the spellings of those that the tokenizer has beside its vocabulary. `settings` are those given, with the
    tags that were found. `has_thinking`: whether the model can think; `takes_tools`: whether there is a place for
    tools. `switch`: how thinking is turned on and off, and `toggles`: whether that makes a difference.
    `closes_thinking`: whether a prompt without thinking ends with a closed think block. `variables`: what the template
    asks for beside what the server has for it.
    Raises FormatError for what is no template, OSError for a file that cannot be read.
    """

    def __init__(
        self,
        files: TemplateFiles,
        settings: FormatSettings,
        styles: Sequence[PromptStyle] = (DIRECT, THINKING),
        tokens: Collection[str] = (),
    ) -> None:
        self._environment = Environment(trim_blocks=True, lstrip_blocks=True)
        self._template = self._compile(files.source)
        self._tool_template = self._compile(files.tool_source) if files.tool_source else self._template
        if "messages" not in self._variables(files.source):
            raise FormatError("this is no chat template: it has no place for `messages`", "chat_template")
        sources = {path: path.read_text(encoding="utf-8") for path in _files_of(styles)}
        self._of_file = {path: self._compile(source) for path, source in sources.items()}
        self._named = files.named_tokens
        self.end_of_turn = files.named_tokens.get("eos_token", "")
        self.source = "".join([files.source, files.tool_source or "", *sources.values()])
        self.response = files.response
        found_in = f"{self.source} {files.response.think} {files.response.think_end}"
        self.settings = with_found_tags(settings, found_in, tokens) if settings.finds_tags else settings
        known = self._variables(files.source)
        self.takes_tools = bool(files.tool_source) or settings.tools in known
        self.variables = frozenset(known) - OURS - self._environment.globals.keys() - {settings.tools}
        self.switch = find_switch(self.variables, self.source, self._tried, self.settings)
        self.has_thinking = self._thinks(styles, tokens) if settings.thinks is None else settings.thinks
        self.closes_thinking = self.has_thinking and self._closes(styles)
        self.toggles = not self._texts(styles, thinks=False) & self._texts(styles, thinks=True)

    def render(
        self,
        turns: Sequence[Turn],
        style: PromptStyle,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = True,
        is_open: bool = False,
    ) -> str:
        """The prompt as text, client text in it as `protect` makes it.

        Raises FormatError, also for what the template itself refuses.
        """
        if tools and not self.takes_tools:
            raise FormatError("this model's chat template has no place for tools", "tools")
        options: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, "is_open": is_open}
        try:
            return self._rendered(turns, style, tools, **options)
        except TooSlowError:
            raise
        except FormatError:
            objects_only = [
                _with_objects(turn) for turn in turns
            ]  # some templates want a call's arguments as an object
            if objects_only == list(turns):
                raise
            return self._rendered(objects_only, style, tools, **options)

    def _rendered(
        self,
        turns: Sequence[Turn],
        style: PromptStyle,
        tools: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        is_open: bool,
    ) -> str:
        last = len(turns) - 1
        turns = with_one_call(turns) if self.settings.one_call_a_turn else turns
        messages = [_message(turn) for turn in turns]
        if is_open:
            fields = ["content"] if turns[-1]["content"] or not turns[-1]["reasoning_content"] else PAST_THINKING
            messages[-1] |= {field: messages[-1][field] + END for field in fields}
        context = {
            **self._named,
            **self._of_style(style),
            "messages": messages,
            "tools": None,
            "documents": None,
            **{name: protect_all(value) for name, value in check_variables(style.from_client).items()},
            **({self.settings.tools: protect_all(list(tools))} if tools else {}),
            "add_generation_prompt": add_generation_prompt,
        }
        text = rendered(self._template_for(style, has_tools=bool(tools)), context)
        if not is_open:
            return text
        if END not in text:
            raise FormatError("this model's chat template leaves out the text to be continued", f"messages[{last}]")
        return text[: text.rindex(END)]

    def _of_style(self, style: PromptStyle) -> dict[str, Any]:
        """The variables of a style, but for its client's."""
        own = self.switch.variables(thinks=style.opens_thinking) if style.variables is None else style.variables
        return {**own, **style.added}

    def _tried(self, variables: Mapping[str, Any]) -> str | None:
        """What the template makes of a short conversation; None where it refuses these variables."""
        style = PromptStyle(opens_thinking=True, variables=variables)
        try:
            return self._rendered(TRIED, style, (), add_generation_prompt=True, is_open=False)
        except FormatError:
            return None

    def _closes(self, styles: Sequence[PromptStyle]) -> bool:
        """Whether the template does; or would have to, since it writes the same where the model shall think."""
        direct = self._texts(styles, thinks=False)
        same = direct & self._texts(styles, thinks=True)
        return bool(same) or any(is_closed(text, self.settings) for text in direct)

    def _texts(self, styles: Sequence[PromptStyle], *, thinks: bool) -> set[str]:
        """What the template makes of a short conversation in the styles that think, or in those that do not."""
        tried = [self._tried(self._of_style(style)) for style in styles if style.opens_thinking is thinks]
        return {text for text in tried if text is not None}

    def _template_for(self, style: PromptStyle, *, has_tools: bool) -> Template:
        if isinstance(style.template, Path):
            return self._of_file[style.template]
        return self._tool_template if has_tools else self._template

    def _compile(self, source: str) -> Template:
        with compiling():
            return self._environment.from_string(source)

    def _variables(self, source: str) -> set[str]:
        with compiling():
            return meta.find_undeclared_variables(self._environment.parse(source))

    def _thinks(self, styles: Sequence[PromptStyle], tokens: Collection[str]) -> bool:
        """A template that knows the tags of thinking; or that one of the styles' variables changes, where the
        tokenizer has the tags.
        """
        tags = (self.settings.think, self.settings.think_end)
        if any(tag in self.source for tag in tags if tag not in SHARED_ENDS):
            return True
        switches = {name for style in styles for name in self._of_style(style)}
        return all(tag in tokens for tag in tags) and not switches.isdisjoint(self.variables)


def _files_of(styles: Sequence[PromptStyle]) -> list[Path]:
    return [style.template for style in styles if isinstance(style.template, Path)]


def _message(turn: Turn) -> dict[str, Any]:
    """As transformers' templates know it: what is empty is left out, but for the content."""
    message: dict[str, Any] = {"role": turn["role"], "content": protect(turn["content"])}
    for field in ("name", "tool_call_id"):
        if turn[field]:
            message[field] = protect(turn[field])
    if turn["reasoning_content"]:
        message |= dict.fromkeys(PAST_THINKING, protect(turn["reasoning_content"]))
    if turn["tool_calls"]:
        message["tool_calls"] = list(map(_call, turn["tool_calls"]))
    return message


def _with_objects(turn: Turn) -> Turn:
    """The turn with no arguments instead of such as are only text."""
    calls: list[Call] = [
        {**call, "arguments": {} if isinstance(call["arguments"], str) else call["arguments"]}
        for call in turn["tool_calls"]
    ]
    return {**turn, "tool_calls": calls}


def _call(call: Call) -> dict[str, Any]:
    function = {"name": protect(call["name"]), "arguments": protect_all(call["arguments"])}
    return {"id": protect(call["id"]), "type": "function", "function": function}

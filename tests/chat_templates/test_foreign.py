"""Checkpoints' own templates: text as on plain strings, client text never a control token, the modes' think blocks."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles, read_template
from chat_templates.client_text import Text, plain, protect
from chat_templates.errors import FormatError
from chat_templates.events import AnswerText, ReasoningText, ToolCallArguments, ToolCallStart, joined
from chat_templates.format import NO_TOKEN, ChatFormat
from chat_templates.messages import check_messages, check_tools
from chat_templates.parser import OutputParser
from chat_templates.settings import DIRECT, FormatSettings
from chat_templates.settings import THINKING as THINKS
from chat_templates.tokens import Vocabulary, replace_surrogates
from tests.chat_templates.conversations import CLOCK, user
from tests.chat_templates.foreign import FOREIGN, IM, QWEN, SMOL, STYLES_OF, THINKING, plain_rendering, tokenizer_json
from tests.chat_templates.small_tokenizers import byte_level_with, sentencepiece
from tests.chat_templates.strategies import calls, tools
from tests.styles import STYLES, Mode

FORMATS = {name: make() for name, (make, _) in FOREIGN.items()}
MODES: tuple[Mode, Mode] = ("standard", "reasoning")
SPELLINGS = [
    *(*IM, *THINKING, "<bos>", "<start_of_turn>", "<end_of_turn>", "<|start|>", "<|of|>", "<|end|>", "<response>"),
    *("\n</think>\n\n", "<|im_", "start|>", "im_end", "think", "<|", "|>", "<", ">", "\n\n", "<table>", " ", '"', "\\"),
]
SURROGATES = ["\ud800", "\udc81", "\udc82"]
hostile = st.lists(
    st.one_of(st.sampled_from(SPELLINGS), st.text(max_size=4), st.sampled_from(SURROGATES)), max_size=6
).map("".join)
ANSWERS = {"reasoning_content": hostile, "tool_calls": st.lists(calls, max_size=2)}
conversations = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "tool"]), "content": hostile}),
        st.fixed_dictionaries({"role": st.just("assistant"), "content": hostile}, optional=ANSWERS),
    ),
    min_size=1,
    max_size=4,
)
QUESTIONS = ("find", "rfind", "count", "startswith", "endswith", "__contains__", "__eq__", "__ne__", "__lt__", "__ge__")


def _alternating(texts: list[str]) -> list[dict[str, Any]]:
    return [{"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(texts)]


def _clean(value: Any) -> Any:
    """As templates meet it, with plain strings."""
    match value:
        case str():
            return replace_surrogates(value)
        case list():
            return [_clean(item) for item in value]
        case dict():
            return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def _for_jinja(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages = []
    for turn in check_messages(conversation):
        message: dict[str, Any] = {key: turn[key] for key in ("role", "content")}
        message |= {key: turn[key] for key in ("reasoning_content", "tool_call_id", "name") if turn[key]}
        if turn["tool_calls"]:
            message["tool_calls"] = [
                {"function": {"name": c["name"], "arguments": c["arguments"]}} for c in turn["tool_calls"]
            ]
        messages.append(message)
    return [_clean(message) for message in messages]


def _expected(name: str, conversation: list[dict[str, Any]], mode: Mode, described: list[dict[str, Any]]) -> str:
    fmt = FORMATS[name]
    text = plain_rendering(
        FOREIGN[name][1], messages=_for_jinja(conversation), tools=_clean(check_tools(described)) or None,
        add_generation_prompt=True, bos_token="<bos>", **(STYLES_OF[name][mode].variables or {}),
    )  # fmt: skip
    return text + (fmt.settings.think + fmt.settings.after_think if mode == "reasoning" else "")


@settings(max_examples=60)
@given(conversations, tools, st.sampled_from(MODES))
def test_text_is_that_of_the_template_on_plain_strings(
    conversation: list[dict[str, Any]], described: list[dict[str, Any]], mode: Mode
) -> None:
    """Whatever the texts hold: what the template searches, splits and trims comes out the same."""
    fmt = FORMATS["qwen"]
    ids = fmt.render(conversation, STYLES_OF["qwen"][mode], described)
    assert fmt.decode(ids, show_control=True) == _expected("qwen", conversation, mode, described)


@settings(max_examples=40)
@given(st.lists(hostile, min_size=1, max_size=4), st.sampled_from(["smol", "gemma", "granite"]))
def test_text_of_other_templates(texts: list[str], name: str) -> None:
    fmt = FORMATS[name]
    conversation = _alternating(texts)
    ids = fmt.render(conversation, STYLES_OF[name]["standard"])
    assert fmt.decode(ids, show_control=True) == _expected(name, conversation, "standard", [])


@settings(max_examples=60)
@given(st.lists(hostile, min_size=1, max_size=4), st.sampled_from(sorted(FORMATS)))
def test_only_the_template_writes_control_tokens(texts: list[str], name: str) -> None:
    fmt = FORMATS[name]
    conversation = [user(text) for text in texts] if name != "gemma" else [user(texts[0])]
    harmless = [user("x" if message["content"] else "") for message in conversation]
    written = frozenset(fmt.vocabulary.written.values())
    ids = [token_id for token_id in fmt.render(conversation, DIRECT) if token_id in written]
    assert ids == [token_id for token_id in fmt.render(harmless, DIRECT) if token_id in written]


@given(hostile)
def test_plain_text_has_no_control_token(text: str) -> None:
    for fmt in FORMATS.values():
        ids = fmt.encode_text(text)
        assert fmt.control_ids.isdisjoint(ids)
        assert fmt.decode(ids) == replace_surrogates(text)


texts = st.text(alphabet='ab<>/é가 \n"', max_size=8)


@given(texts, texts, texts, st.integers(-9, 9), st.integers(-9, 9))
def test_protected_text_answers_as_plain_text(text: str, part: str, new: str, start: int, end: int) -> None:
    protected = protect(text)
    for ask in QUESTIONS:
        assert getattr(protected, ask)(part) == getattr(text, ask)(part), ask
    for change in ("strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "__add__"):
        assert plain(getattr(protected, change)(part)) == getattr(text, change)(part), change
    for change in ("strip", "upper", "lower", "title", "capitalize"):
        assert plain(getattr(protected, change)()) == getattr(text, change)(), change
    for cut in ("split", "rsplit", "splitlines"):
        assert list(map(plain, getattr(protected, cut)())) == getattr(text, cut)(), cut
    if part:
        for cut in ("split", "rsplit", "partition", "rpartition"):
            assert list(map(plain, getattr(protected, cut)(part))) == list(getattr(text, cut)(part)), cut
    assert plain(protected.replace(part, new)) == text.replace(part, new)
    assert plain(protected[start:end]) == text[start:end]
    assert len({protected, text}) == 1
    assert "".join(map(plain, protected)) == text
    assert isinstance("a" + protected, Text)
    assert isinstance(protected.join([part, new]), Text)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_the_modes_think_blocks(name: str) -> None:
    """Open in reasoning mode, not in standard mode, whatever the template leaves to the model."""
    fmt = FORMATS[name]
    conversation = [user("<think> </think>")]
    assert not fmt.is_thinking_open(fmt.render(conversation, DIRECT))
    if fmt.has_thinking:
        assert fmt.is_thinking_open(fmt.render(conversation, THINKS))
        return
    with pytest.raises(FormatError, match="does not think") as caught:
        fmt.render(conversation, THINKS)
    assert caught.value.param == "reasoning_mode"


def test_a_template_that_always_opens_the_block_has_it_closed_in_standard_mode() -> None:
    turns = "{% for m in messages %}{{ '<|im_start|>' ~ m.content ~ '<|im_end|>' }}{% endfor %}"
    template = turns + "{{ '<|im_start|><think>\n' }}"
    fmt = _format(template, THINKING)
    prompts = [fmt.decode(fmt.render([user("Hi")], STYLES[mode]), show_control=True) for mode in MODES]
    assert [prompt.rpartition("<|im_start|>")[2] for prompt in prompts] == ["<think>\n\n</think>\n\n", "<think>\n"]


def test_which_models_think_and_take_tools() -> None:
    assert {name: fmt.has_thinking for name, fmt in FORMATS.items()} == {
        "qwen": True, "smol": False, "gemma": False, "granite": True,
    }  # fmt: skip
    assert FORMATS["qwen"].think_id != NO_TOKEN
    assert FORMATS["granite"].think_id == NO_TOKEN
    assert FORMATS["qwen"].render([user("Hi")], DIRECT, [CLOCK])
    with pytest.raises(FormatError, match="no place for tools"):
        FORMATS["smol"].render([user("Hi")], DIRECT, [CLOCK])


def test_of_the_names_for_tools_only_tools_is_none_where_there_are_none() -> None:
    files = TemplateFiles("{{ messages and [tools is none, documents is none, xml_tools is defined] }}", None, {})
    template = CheckpointTemplate(files, FormatSettings(tools="xml_tools"))
    assert template.render(check_messages([user("Hi")]), DIRECT) == "[True, True, False]"


def test_what_a_template_refuses_is_told_in_its_words() -> None:
    with pytest.raises(FormatError, match="must alternate"):
        FORMATS["gemma"].render([user("a"), user("b")], DIRECT)


def test_reasoning_of_past_turns_is_the_templates_to_cut() -> None:
    fmt = FORMATS["qwen"]
    past = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes"}
    text = fmt.decode(fmt.render([user("a"), past, user("b")], DIRECT), show_control=True)
    assert "hm" not in text
    assert "<|im_start|>assistant\nYes<|im_end|>" in text


def test_continuing_the_last_message() -> None:
    def prompt(**message: Any) -> str:
        fmt = FORMATS["qwen"]
        ids = fmt.render([user("Hi"), {"role": "assistant", **message}], THINKS, continue_final_message=True)
        return fmt.decode(ids, show_control=True).rpartition("<|im_start|>assistant\n")[2]

    assert prompt(content=" Hel ") == " Hel "
    assert prompt(content="", reasoning_content="So") == "<think>\nSo"
    assert prompt(content="Hel", reasoning_content="So") == "<think>\nSo\n</think>\n\nHel"


def _events(fmt: ChatFormat, text: str, mode: Mode, cuts: list[int]) -> list[Any]:
    ids = [
        token_id
        for piece in fmt._split.split(text)  # as a model would write it: tags as tokens where there are such
        for token_id in ([fmt.vocabulary.written[piece]] if piece in fmt.vocabulary.written else fmt.encode_text(piece))
    ]
    parser = OutputParser(fmt, thinking_open=mode == "reasoning", call_id=lambda: "id")
    events = []
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        events += parser.feed(ids[start:end])
    return joined(events + parser.finish())


@pytest.mark.parametrize("name", ["qwen", "granite", "smol"])
def test_a_call_between_text(name: str) -> None:
    text = 'Let me see.\n<tool_call>\n{"name": "now", "arguments": {"a": "</x>"}}\n</tool_call>'
    assert _events(FORMATS[name], text, "standard", [])[:3] == [
        AnswerText("Let me see."),
        ToolCallStart(0, "id", "now"),
        ToolCallArguments(0, '{"a": "</x>"}'),
    ]


def test_tags_as_text_that_are_no_call_come_back() -> None:
    text = "a <tool_call> b </tool_call> c <tool_call> d"
    assert _events(FORMATS["granite"], text, "standard", []) == [AnswerText(text)]


def test_thinking_and_hidden_tags_as_text() -> None:
    assert _events(FORMATS["granite"], "so </ b</think><response>7 < 8</response>", "reasoning", []) == [
        ReasoningText("so </ b"),
        AnswerText("7 < 8"),
    ]


PARTS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>", "</", "<", "th", "\n"),
    *('{"name": "f", "arguments": {', "}}", "a", " ", "é"),
]
generated = st.lists(st.sampled_from(PARTS), max_size=9).map("".join)


@given(generated, st.sampled_from(["qwen", "granite"]), st.sampled_from(MODES), st.data())
def test_how_a_generation_is_cut_changes_nothing(text: str, name: str, mode: Mode, data: st.DataObject) -> None:
    fmt = FORMATS[name]
    whole = _events(fmt, text, mode, [])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    assert _events(fmt, text, mode, cuts) == whole


@given(generated)
def test_the_end_of_thinking_as_text_is_found_where_the_parser_finds_it(text: str) -> None:
    fmt = FORMATS["granite"]
    ids, end = fmt.encode_text(text), fmt.think_end()
    taken = next((n + 1 for n, token_id in enumerate(ids) if end.feed(token_id)), None)
    assert (taken is not None) == ("</think>" in text)
    if taken is not None:
        assert fmt.decode(ids[:taken]).count("</think>") == 1


def _format(template: str, added: list[str]) -> ChatFormat:
    checkpoint = CheckpointTemplate(TemplateFiles(template, None, {}), FormatSettings())
    vocabulary = Vocabulary(tokenizer_json(IM, added), required=(), tags=FormatSettings().tags, template=template)
    return ChatFormat(vocabulary, checkpoint)


EVERYTHING = """
{%- macro turn(role, text) %}{{ '<|im_start|>' ~ role }}: {{ text }}{% endmacro %}
{%- set ns = namespace(all='', last=none) %}
{%- for m in messages %}
  {%- if m.content == 'stop' %}{% break %}{% endif %}
  {%- set ns.all = ns.all ~ m.content %}
  {%- set ns.last = m.content if 'a' in m.content else ns.last %}
{%- endfor %}
{%- set block %}[{{ messages[0].content }}]{% endset %}
{{- turn('user', ns.all) ~ block }}
{{ block | length }} {{ block.split('<')[0] }} {{ '%s!' | format(ns.last) }} {{ '%s?' % messages[0].content }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}
{{ messages | map(attribute='content') | sort | unique | list | first }} {{ messages[0].content[::-1] | upper }}
{%- generation %} {{ messages[-1].content | replace('<', '(') | trim | indent(2) }} {% endgeneration %}
{{ {'<': messages[0].content} | tojson(indent=1) }} {{ messages[0].content | default('x') | string | reverse }}
{{- 'yes' if messages[0].content.startswith(('<', 'a')) and messages[0].content is string else 'no' }}
{{- messages[0].content.strip('<a') + messages[0].content * 2 ~ messages[0].content | capitalize }}
"""


@settings(max_examples=40)
@given(st.lists(hostile | st.just("stop"), min_size=1, max_size=3))
def test_what_templates_may_do_comes_out_as_on_plain_strings(texts: list[str]) -> None:
    fmt = _format(EVERYTHING, THINKING)
    conversation = [user(text) for text in texts]
    source = EVERYTHING.replace("{%- generation %}", "{%- if true %}").replace("endgeneration", "endif")
    expected = plain_rendering(source, messages=_clean(conversation))
    assert fmt.decode(fmt.render(conversation, DIRECT), show_control=True) == expected


def test_where_templates_are_found(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    config: dict[str, Any] = {"bos_token": {"content": "<s>", "special": True}, "eos_token": "</s>", "unk_token": None}
    config["chat_template"] = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_template(tmp_path) == TemplateFiles("a", "b", {"bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "chat_template.jinja").write_text("c")
    assert read_template(tmp_path) == TemplateFiles("c", None, {"bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "mine.jinja").write_text("d")
    found = read_template(tmp_path, tmp_path / "mine.jinja")
    assert found is not None
    assert found.source == "d"


def test_a_folder_with_a_template_and_one_without(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json([*IM, "<bos>"], THINKING, bos="<bos>"))
    assert not ChatFormat.from_folder(tmp_path).can_chat
    (tmp_path / "chat_template.jinja").write_text(QWEN)
    fmt = ChatFormat.from_folder(tmp_path)
    assert fmt.decode(fmt.encode_prompt("Hi"), show_control=True) == "<bos>Hi"
    assert fmt.decode(fmt.render([user("Hi")], DIRECT), show_control=True).startswith("<|im_start|>user\nHi<|im_end|>")
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(FormatError, match="line 1"):
        ChatFormat.from_folder(tmp_path)


def test_added_words_and_white_space_stay_tokens_of_text() -> None:
    fmt = FORMATS["gemma"]
    break_id = next(n for n in range(99) if fmt.vocabulary.token_text(n) == "\n\n")
    assert break_id in fmt.encode_text("a\n\nb")
    table_id = next(n for n in range(99) if fmt.vocabulary.token_text(n) == "<table>")
    assert table_id not in fmt.encode_text("<table>")
    assert fmt.decode([table_id]) == "<table>"  # the model may write it: it is neither special nor a tag


def test_text_of_smol_is_its_template() -> None:
    assert SMOL.count("You are small.") == 1
    ids = FORMATS["smol"].render([user("Hi")], DIRECT)
    expected = "<|im_start|>system\nYou are small.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert FORMATS["smol"].decode(ids, show_control=True) == expected


def test_ids_are_those_of_the_whole_text() -> None:
    """For text without tags in it the tokenizer itself, fed with the whole prompt, gives the same ids."""
    template = "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ m.content ~ '<|im_end|>\\n' }}{% endfor %}"
    roles = [AddedToken(text, special=True, rstrip=text == "<|im_end|>", lstrip=text == "<|im_start|>") for text in IM]
    for tokenizer in (byte_level_with(IM), _blank_at_the_start()):
        tokenizer.add_special_tokens(roles)
        checkpoint = CheckpointTemplate(TemplateFiles(template, None, {}), FormatSettings())
        fmt = ChatFormat(Vocabulary(tokenizer.to_str(), required=(), template=template), checkpoint)
        conversation = [user(" Hello the thing "), {"role": "assistant", "content": "2 and 3\n"}, user("\n\nan in")]
        text = plain_rendering(template, messages=conversation)
        assert fmt.render(conversation, DIRECT) == tokenizer.encode(text, add_special_tokens=False).ids


def _blank_at_the_start() -> Tokenizer:
    """As Mistral's: a blank before the text, but not after a control token in it."""
    tokenizer = sentencepiece()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer

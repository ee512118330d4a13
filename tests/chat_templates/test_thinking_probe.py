"""Where no profile knows a template: tags, switch and levels are found, and no tag is written that is none."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.client_text import plain
from chat_templates.errors import FormatError
from chat_templates.format import ChatFormat
from chat_templates.messages import check_messages
from chat_templates.settings import DIRECT, THINKING, FormatSettings, PromptStyle
from chat_templates.templates import NO_TEMPLATE
from tests.chat_templates.conversations import user
from tests.chat_templates.foreign import IM, IM_NAMES, tokenizer_json

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n"
END = "{% endif %}"
GENERAL = FormatSettings(finds_tags=True)
ASKED = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def made(template: str, added: Sequence[str] = (), settings: FormatSettings = GENERAL) -> CheckpointTemplate:
    return CheckpointTemplate(TemplateFiles(template, None, IM_NAMES), settings, tokens=added)


def folder_with(folder: Path, template: str | None, added: Sequence[str] = (), special: Sequence[str] = IM) -> Path:
    (folder / "tokenizer.json").write_text(tokenizer_json(list(special), list(added)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def prompt(fmt: ChatFormat, style: PromptStyle, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    return fmt.decode(fmt.render(messages or [user("Hi")], style, **options), show_control=True)


def ends(thinks: str) -> str:
    """A template whose prompt ends with an open block where the condition holds, else with a closed one."""
    return f"{TURNS}{PROMPT}{{% if {thinks} %}}<think>{{% else %}}<think></think>{{% endif %}}{END}"


@pytest.mark.parametrize(
    ("thinks", "on", "off"),
    [
        ("enable_thinking is not defined or enable_thinking", {"enable_thinking": True}, {"enable_thinking": False}),
        ("thinking", {"thinking": True}, {"thinking": False}),
        ("thinking_mode == 'thinking'", {"thinking_mode": "thinking"}, {"thinking_mode": "chat"}),
        ("thinking_mode != 'disabled'", {"thinking_mode": "thinking"}, {"thinking_mode": "disabled"}),
        ("reasoning_effort != 'none'", {}, {"reasoning_effort": "none"}),
        ("reasoning_effort in ('low', 'high')", {"reasoning_effort": "high"}, {"reasoning_effort": "none"}),
        ("reasoning_effort != 'no_think'", {}, {"reasoning_effort": "no_think"}),
        ("thinking_budget != 0", {}, {"thinking_budget": 0}),
        ("reasoning", {"reasoning": True}, {"reasoning": False}),
        ("reasoning_strength != 'none'", {}, {"reasoning_strength": "none"}),
    ],
)  # fmt: skip
def test_the_switch_is_found_by_trying(thinks: str, on: Mapping[str, Any], off: Mapping[str, Any]) -> None:
    found = made(ends(thinks))
    assert (found.switch.on, found.switch.off) == (on, off)
    assert found.toggles
    assert found.closes_thinking
    thinking, direct = (found.render(check_messages([user("Hi")]), style) for style in (THINKING, DIRECT))
    assert thinking.endswith("<think>")
    assert direct.endswith("</think>")


def test_of_two_switches_the_one_is_taken_that_opens_the_block() -> None:
    """As where `thinking` only changes what the system message says."""
    system = "{% if enable_thinking %}<|im_start|>system\nThink.<|im_end|>\n{% endif %}"
    assert made(system + ends("thinking")).switch.name == "thinking"


def test_a_value_that_the_template_refuses_is_not_taken() -> None:
    strict = (
        "{% if thinking_mode is defined and thinking_mode not in ('on', 'off') %}{{ raise_exception('no') }}{% endif %}"
    )
    switch = made(strict + ends("thinking_mode == 'on'")).switch
    assert (switch.on, switch.off) == ({"thinking_mode": "on"}, {"thinking_mode": "off"})


def test_levels_are_those_that_the_template_names_and_takes() -> None:
    strict = (
        "{% if reasoning_effort is defined and reasoning_effort not in ['low', 'high', 'max'] %}"
        "{{ raise_exception('unsupported') }}{% endif %}{{ reasoning_effort }}"
    )
    assert list(made(f"{strict}{TURNS}{PROMPT}<think>{END}").switch.levels) == ["low", "high", "max"]
    assert list(made(f"{{{{ reasoning_effort }}}}{TURNS}{PROMPT}<think>{END}").switch.levels) == [
        "low",
        "medium",
        "high",
    ]
    assert made(f"{TURNS}{PROMPT}<think>{END}").switch.levels == {}


@pytest.mark.parametrize(
    ("think", "think_end", "after"),
    [
        ("[THINK]", "[/THINK]", ""),
        ("<seed:think>", "</seed:think>", ""),
        ("<|channel>", "<channel|>", "thought\n"),
        ("<|START_THINKING|>", "<|END_THINKING|>", ""),
        ("<|inner_prefix|>", "<|inner_suffix|>", ""),
    ],
)
@pytest.mark.parametrize("in_template", [True, False])
def test_other_tags_are_found(tmp_path: Path, think: str, think_end: str, after: str, in_template: bool) -> None:
    """In the template, or else in the tokenizer; and `<think>` is never written."""
    closed = (
        f"{{% if not enable_thinking %}}{think}{think_end}{{% endif %}}" if in_template else "{{ enable_thinking }}"
    )
    folder = folder_with(tmp_path, f"{TURNS}{PROMPT}{closed}{END}", [think, think_end])
    fmt = ChatFormat.from_folder(folder, GENERAL)
    assert fmt.think_id in fmt.control_ids
    thinking = prompt(fmt, THINKING)
    assert thinking.endswith(f"assistant\n{'' if in_template else 'True'}{think}{after}")
    assert "<think>" not in thinking + prompt(fmt, DIRECT)
    assert fmt.is_thinking_open(fmt.render([user("Hi")], THINKING))
    assert not fmt.is_thinking_open(fmt.render([user("Hi")], DIRECT))


def test_a_tag_that_nobody_knows_is_not_written(tmp_path: Path) -> None:
    """A switch alone, and tags in neither template nor tokenizer: the model is served as one that does not think."""
    template = f"{TURNS}{PROMPT}{{% if enable_thinking %}}<mull>{{% endif %}}{END}"
    fmt = ChatFormat.from_folder(folder_with(tmp_path, template), GENERAL)
    assert not fmt.has_thinking
    assert prompt(fmt, DIRECT) == ASKED
    with pytest.raises(FormatError, match="does not think"):
        fmt.render([user("Hi")], THINKING)


def test_a_model_that_thinks_whatever_it_is_told_is_given_a_closed_block(tmp_path: Path) -> None:
    """R1's distills: nothing in the prompt would keep them from thinking in the answer."""
    template = TURNS.replace("m.content", "m.content.split('</think>')[-1]") + PROMPT + END
    fmt = ChatFormat.from_folder(folder_with(tmp_path, template, ["<think>", "</think>"]), GENERAL)
    assert not fmt.toggles
    assert prompt(fmt, DIRECT) == f"{ASKED}<think>\n\n</think>\n\n"
    assert prompt(fmt, THINKING) == f"{ASKED}<think>\n"
    answered = [user("Hi"), {"role": "assistant", "content": "7"}, user("Hi")]
    assert prompt(fmt, DIRECT, answered).endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_conversation_that_turns_thinking_on_itself_gets_the_closed_block(tmp_path: Path) -> None:
    """SmolLM3 looks for /think in the system message, and then leaves the block out that the mode wants."""
    switch = "{% if '/think' in messages[0].content %}{% set enable_thinking = true %}{% endif %}"
    closed = "{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}"
    folder = folder_with(tmp_path, f"{switch}{TURNS}{PROMPT}{closed}{END}", ["<think>", "</think>"])
    fmt = ChatFormat.from_folder(folder, GENERAL)
    assert prompt(fmt, DIRECT).endswith("assistant\n<think>\n\n</think>\n")
    asking = [{"role": "system", "content": "/think"}, user("Hi")]
    assert prompt(fmt, DIRECT, asking).endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_model_that_is_told_to_think_in_its_system_message_gets_no_block(tmp_path: Path) -> None:
    """Granite: without the message it does not think."""
    system = "{% if thinking %}<|im_start|>system\nUse <think></think>.<|im_end|>\n{% endif %}"
    fmt = ChatFormat.from_folder(folder_with(tmp_path, f"{system}{TURNS}{PROMPT}{END}"), GENERAL)
    assert fmt.toggles
    assert prompt(fmt, DIRECT) == ASKED


def test_a_thought_that_is_gone_on_with_in_standard_mode_is_closed(tmp_path: Path) -> None:
    turn = "{{ '<think>\n' + m.reasoning_content + '\n</think>\n\n' if m.reasoning_content }}{{ m.content }}"
    template = TURNS.replace("{{ m.content }}", turn) + PROMPT + END
    fmt = ChatFormat.from_folder(folder_with(tmp_path, template, ["<think>", "</think>"]), GENERAL)
    messages = [user("Hi"), {"role": "assistant", "content": "", "reasoning_content": "So"}]
    direct = fmt.render(messages, DIRECT, continue_final_message=True)
    assert fmt.decode(direct, show_control=True) == f"{ASKED}<think>\nSo\n</think>\n\n"
    assert not fmt.is_thinking_open(direct)
    assert prompt(fmt, THINKING, messages, continue_final_message=True) == f"{ASKED}<think>\nSo"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_past_thinking_has_all_names(name: str) -> None:
    template = f"{{% for m in messages %}}{{{{ m.{name} | default('none') }}}};{{% endfor %}}"
    messages = [user("Hi"), {"role": "assistant", "content": "x", "reasoning": "so"}]
    assert plain(made(template).render(check_messages(messages), DIRECT)) == "none;so;"


def test_only_tools_and_documents_are_none() -> None:
    """As in transformers: a template asks whether `xml_tools` is defined."""
    template = "{% if messages %}{{ [tools is none, documents is none, xml_tools is defined] }}{% endif %}"
    settings = FormatSettings(tools="xml_tools")
    assert made(template, settings=settings).render(check_messages([user("Hi")]), DIRECT) == "[True, True, False]"


def test_a_template_that_calls_itself_without_end_is_refused_as_any_other() -> None:
    template = "{% macro again(x) %}{{ again(x) }}{% endmacro %}{% if messages | length > 1 %}{{ again(1) }}{% endif %}"
    with pytest.raises(FormatError, match="recursion"):
        made(template).render(check_messages([user("Hi"), user("Hi")]), DIRECT)


def test_client_variables_are_text(tmp_path: Path) -> None:
    template = f"{{{{ note }}}}{TURNS}{PROMPT}{END}{{{{ documents | tojson }}}}"
    fmt = ChatFormat.from_folder(folder_with(tmp_path, template), GENERAL)
    assert fmt.variables == {"note"}
    style = PromptStyle(opens_thinking=False, from_client={"note": "<|im_end|>", "documents": [{"t": "<|im_end|>"}]})
    ids = fmt.render([user("Hi")], style)
    assert ids.count(fmt.end_of_turn_id) == 1
    assert "<|im_end|><|im_start|>user" in fmt.decode(ids, show_control=True)
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(FormatError, match="deep") as caught:
        fmt.render([user("Hi")], PromptStyle(opens_thinking=False, from_client={"note": deep}))
    assert caught.value.param == "chat_template_kwargs.note"


def test_a_base_model_has_no_conversations(tmp_path: Path) -> None:
    fmt = ChatFormat.from_folder(folder_with(tmp_path, None))
    assert not fmt.can_chat
    assert not fmt.has_thinking
    assert fmt.decode(fmt.encode_prompt("Once upon")) == "Once upon"
    with pytest.raises(FormatError, match="--chat-template") as caught:
        fmt.render([user("Hi")], DIRECT)
    assert (caught.value.message, caught.value.param) == (NO_TEMPLATE, "messages")
    assert not fmt.restyled(tmp_path).can_chat


def test_the_end_of_a_turn_is_no_sign_of_thinking() -> None:
    """`<|end|>` ends the thinking of gpt-oss and Solar Open, and the turns of Phi 3.5, which does not think."""
    turns = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n"
    checkpoint = made(turns, ["<|end|>", "<|assistant|>"])
    assert (checkpoint.has_thinking, checkpoint.closes_thinking) == (False, False)
    assert checkpoint.settings.think == "<think>"


@pytest.mark.parametrize(
    ("tags", "end"),
    [
        (("<|think|>", "<|end|>"), "<|begin|>assistant"),
        (("<mm:think>", "</mm:think>"), "ai\n"),
        (("<think:opensource>", "</think:opensource>"), "assistant"),
    ],
)
def test_tags_of_families_that_are_known_by_their_template_alone(tags: tuple[str, str], end: str) -> None:
    past = f"{{% if m.reasoning %}}{tags[0]}{{{{ m.reasoning }}}}{tags[1]}{{% endif %}}"
    template = f"{{% for m in messages %}}{past}{{{{ m.content }}}}<|end|>{{% endfor %}}{end}"
    settings = made(template, tags).settings
    assert (settings.think, settings.think_end) == tags

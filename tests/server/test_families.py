"""Each shipped profile on a small template in its family's manner: chosen, rendered as transformers does."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.format import ChatFormat
from chat_templates.tokens import Vocabulary
from server.commands.reference.pages import DOCS, render
from server.modes.mode import Mode, Modes
from server.modes.profile import GENERAL, PROFILE_FOLDER, Profile, load_profile, shipped_profile, styles_of
from server.modes.thinking import Budget
from tests.chat_templates.foreign import IM, IM_NAMES, tokenizer_json
from tests.server.families import SMALL

OWN = ("general", "twogear_tiny", "exaone4", "gpt_oss", "deepseek_v4", "kimi_k3")
"""Those that have no template of a family's, or replace it, or have more of a format than a small template can show."""
FAMILIES = sorted(SMALL)
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": "Sei höflich: 日本 👋🏽"},
        {"role": "user", "content": "1 + 1?\n\t<b>"},
        {"role": "assistant", "content": "2", **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "So")},
        {"role": "user", "content": "And 2 + 2?"},
    ],
]


def loaded(name: str) -> tuple[Profile, ChatFormat, Modes]:
    small, profile = SMALL[name], load_profile(PROFILE_FOLDER / f"{name}.toml")
    added = [*small.tags, *profile.format.hidden]
    checkpoint = CheckpointTemplate(
        TemplateFiles(small.template, None, IM_NAMES), profile.format, styles_of(profile.plain), added
    )
    tokenizer = tokenizer_json(IM, added)
    vocabulary = Vocabulary(tokenizer, required=(), tags=checkpoint.settings.tags, template=checkpoint.source)
    fmt = ChatFormat(vocabulary, checkpoint)
    return profile, fmt, Modes.of(profile, fmt)


def prompt(fmt: ChatFormat, mode: Mode, messages: list[dict[str, Any]], budget: Budget | None = None) -> str:
    return fmt.decode(fmt.render(messages, mode.style_for(budget, {}, {})), show_control=True)


def theirs(name: str, mode: Mode, messages: list[dict[str, Any]]) -> str:
    """As transformers renders it with the mode's variables."""
    rendered: Any = render_jinja_template(
        [messages],
        chat_template=SMALL[name].template,
        add_generation_prompt=True,
        **mode.variables,
        **mode.levels.default,
    )
    return str(rendered[0][0])


def test_every_profile_has_a_small_template() -> None:
    assert {path.stem for path in PROFILE_FOLDER.glob("*.toml")} == SMALL.keys() | set(OWN)


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v4", "kimi_k3"])
def test_the_profile_of_a_format_of_its_own_is_chosen(name: str) -> None:
    """The prompts are held to the makers' in tests/chat_templates: test_harmony, test_deepseek_v4, test_kimi_k3."""
    assert shipped_profile(name, "").stem == name


@pytest.mark.parametrize("name", FAMILIES)
def test_the_profile_is_chosen(name: str) -> None:
    assert shipped_profile(SMALL[name].model_type, SMALL[name].template).stem == name


@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_transformers_and_end_as_the_mode_wants(name: str, messages: list[dict[str, Any]]) -> None:
    small, (profile, fmt, modes) = SMALL[name], loaded(name)
    ends = {"standard": small.standard, "reasoning": small.reasoning, "auto": small.auto}
    assert list(modes.by_name) == list(profile.modes) == [mode for mode, end in ends.items() if end is not None]
    for mode_name, mode in modes.by_name.items():
        text, end = prompt(fmt, mode, messages), ends[mode_name]
        assert text.startswith(theirs(name, mode, messages))
        assert end is not None
        assert text.endswith(end)
        assert fmt.is_thinking_open(fmt.render(messages, mode.style)) is mode.thinks
    assert len({prompt(fmt, mode, messages) for mode in modes.by_name.values()}) == len(modes.by_name)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_effort_is_refused_by_a_template(name: str) -> None:
    _, fmt, modes = loaded(name)
    for mode in modes.by_name.values():
        for effort in ("minimal", "low", "medium", "high", "xhigh", "max"):
            assert prompt(fmt, mode, CONVERSATIONS[0], Budget("reasoning_effort", effort))


def test_levels_of_families() -> None:
    _, fmt, modes = loaded("seed_oss")
    assert prompt(fmt, modes.by_name["reasoning"], CONVERSATIONS[0], Budget("b", "low")).startswith("Budget: 1024.")
    assert prompt(fmt, modes.by_name["reasoning"], CONVERSATIONS[0], Budget("b", 77)).startswith("Budget: 77.")
    told = loaded("nemotron_3")[2].by_name["reasoning"].levels
    assert [told.told(Budget("b", effort)) for effort in ("minimal", "medium", "max")] == [
        {"low_effort": True}, {"low_effort": False}, {"low_effort": False},
    ]  # fmt: skip


def test_every_profile_says_where_it_comes_from() -> None:
    for path in PROFILE_FOLDER.glob("*.toml"):
        family = load_profile(path).family
        assert path.stem == "general" or (family is not None and family.sources and family.checked), path.stem


def test_the_table_of_families_is_the_profiles() -> None:
    page = (DOCS / "families.md").read_text()
    assert page == render(page)
    assert all(f"| `{path.stem}` |" in page for path in PROFILE_FOLDER.glob("*.toml") if path != GENERAL)

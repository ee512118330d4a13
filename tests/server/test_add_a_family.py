"""docs/add-a-family.md, followed: its profile fits its template, and both modes do what the page says."""

import re
from pathlib import Path

import pytest

from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.format import ChatFormat
from chat_templates.tokens import Vocabulary
from server.modes.mode import Modes
from server.modes.profile import Profile, load_profile, styles_of
from tests.chat_templates.foreign import IM, IM_NAMES, tokenizer_json

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-family.md").read_text()
FILES = dict(re.findall(r"```(?:toml|jinja) (\S+)\n(.*?)```", PAGE, re.DOTALL))
MESSAGES = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    file = tmp_path / "otter.toml"
    file.write_text(FILES["otter.toml"])
    return load_profile(file)


@pytest.fixture
def fmt(profile: Profile) -> ChatFormat:
    files = TemplateFiles(FILES["chat_template.jinja"], None, IM_NAMES)
    template = CheckpointTemplate(files, profile.format, styles_of(profile.plain), [])
    tags = template.settings.tags
    return ChatFormat(Vocabulary(tokenizer_json(IM, []), required=(), tags=tags, template=template.source), template)


def test_both_modes_are_there_and_end_their_prompts_as_the_page_says(profile: Profile, fmt: ChatFormat) -> None:
    modes = Modes.of(profile, fmt)
    assert list(modes.by_name) == ["standard", "reasoning"]
    for name, end in (("standard", "<muse></muse>\n"), ("reasoning", "<muse>\n")):
        mode = modes.by_name[name]
        ids = fmt.render(MESSAGES, mode.style)
        assert fmt.decode(ids, show_control=True).endswith("<|im_start|>assistant\n" + end)
        assert fmt.is_thinking_open(ids) is mode.thinks


def test_the_match_is_for_its_template(profile: Profile) -> None:
    assert profile.match is not None
    assert profile.match.model_types == ("otter",)
    assert all(text in FILES["chat_template.jinja"] for text in profile.match.template_has)


def test_the_family_says_what_was_checked(profile: Profile) -> None:
    assert profile.family is not None
    assert profile.family.models == "Otter"
    assert profile.family.checked
    assert profile.family.sources

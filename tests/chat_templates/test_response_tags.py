"""A checkpoint's response template is a hint: for tags that no profile knows, and for a warning at the start."""

from pathlib import Path
from typing import Any

import pytest
from transformers.cli.serving.utils import _RESPONSE_TEMPLATE_FALLBACKS  # those that transformers has itself

from chat_templates.checkpoint import read_template
from chat_templates.response_tags import ResponseTags
from server.modes.profile import PROFILE_FOLDER, load_profile
from tests.chat_templates.foreign import IM_NAMES
from tests.chat_templates.test_thinking_probe import PROMPT, TURNS, made

GIVEN = {types[0]: template for types, template in _RESPONSE_TEMPLATE_FALLBACKS.items()}
PROFILES = {"qwen2": "qwen3", "qwen3_5": "qwen3_5", "gemma4": "gemma4"}
CALLS = {"qwen2": "<tool_call>", "qwen3_5": "<tool_call>", "gemma4": "<|tool_call>"}


@pytest.mark.parametrize("model_type", GIVEN)
def test_profiles_are_as_transformers_reads_the_families(model_type: str) -> None:
    tags = ResponseTags.of(GIVEN[model_type])
    assert tags.think
    settings = load_profile(PROFILE_FOLDER / f"{PROFILES[model_type]}.toml").format
    assert not list(tags.differences(settings, CALLS[model_type]))


def test_what_is_otherwise_is_said() -> None:
    settings = load_profile(PROFILE_FOLDER / "qwen3.toml").format
    tags = ResponseTags.of(
        {"fields": {"reasoning_content": {"open": "[THINK]", "close": ["[/THINK]"]}, "tool_calls": {"open": "<call>"}}}
    )
    assert tags == ("[THINK]", "[/THINK]", "<call>")
    assert [said.split(", and")[0] for said in tags.differences(settings, "<tool_call>")] == [
        "thinking to begin with '[THINK]'",
        "thinking to end with '[/THINK]'",
        "a tool call to begin with '<call>'",
    ]


@pytest.mark.parametrize("odd", [None, 1, "x", [], {"fields": 3}, {"fields": {"thinking": 1, "tool_calls": []}}])
def test_what_is_none_says_nothing(odd: Any) -> None:
    assert ResponseTags.of(odd) == ("", "", "")


def test_tags_that_the_template_does_not_name_are_found_there(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(TURNS + PROMPT + "{% endif %}")
    config = '{"response_template": {"fields": {"thinking": {"open": "[THINK]", "close": "[/THINK]"}}}}'
    (tmp_path / "tokenizer_config.json").write_text(config)
    files = read_template(tmp_path)
    assert files is not None
    found = type(made(files.source))(files, made(files.source).settings, tokens=IM_NAMES)
    assert (found.settings.think, found.settings.think_end) == ("[THINK]", "[/THINK]")

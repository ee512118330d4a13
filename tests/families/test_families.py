"""The families' checkpoints in real engines: some of them here, all with `make test-families`; and what those gave."""

import json
from collections.abc import Iterator

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from server.modes.profile import shipped_profile
from tests.families.checkpoints import FAMILIES
from tests.families.checks import CHECKS, TOOL, Asking
from tests.families.run import RESULTS, asked
from tests.published.conversations import CONVERSATIONS

HERE = ("apertus", "exaone4_5", "glm4_moe", "magistral", "qwen3")
"""The widest apart in tags of thinking, forms of calls and ways to turn thinking on. gpt-oss has a test of its own.
"""
FOUND = json.loads(RESULTS.read_text())["families"]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_profile_is_chosen(name: str) -> None:
    family = FAMILIES[name]
    assert shipped_profile(family.model_type, family.template).stem == name


@pytest.mark.parametrize("name", FAMILIES)
def test_its_template_takes_all_that_it_is_asked(name: str) -> None:
    for conversation in ("one question", "past thinking", "thinking before a call"):
        messages, has_tools = CONVERSATIONS[conversation]
        rendered = render_jinja_template(
            [messages], chat_template=FAMILIES[name].template, tools=[TOOL] if has_tools else None, bos_token="<s>"
        )
        assert "Köln" in rendered[0][0]


def test_what_was_run_is_known() -> None:
    assert FOUND
    assert FOUND.keys() <= FAMILIES.keys()


@pytest.mark.parametrize("name", FOUND)
def test_all_was_found_right(name: str) -> None:
    """By `make test-families`, which has to run again where a check is new."""
    assert FOUND[name].keys() == CHECKS.keys()
    assert not [found for found in FOUND[name].values() if str(found).startswith("no:")]


@pytest.fixture(scope="module", params=HERE)
def asking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    with asked(request.param, tmp_path_factory.mktemp(request.param)) as found:
        yield found


@pytest.mark.engine
@pytest.mark.parametrize("check", CHECKS)
def test_in_a_real_engine(asking: Asking, check: str) -> None:
    CHECKS[check](asking)

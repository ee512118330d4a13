"""vLLM's own reasoning parsers tell thinking and answer apart as ours do, or it is said why not."""

import json
import subprocess
import sys

import pytest

from chat_templates.events import AnswerText, ReasoningText
from chat_templates.parser import OutputParser
from chat_templates.tool_forms.form import tags_of
from chat_templates.tool_forms.known import FORMS, HERMES
from server.modes.profile import PROFILE_FOLDER, load_profile
from tests.chat_templates.tool_forms.test_parsed import ids_of
from tests.server.test_families import loaded

PARSERS = {
    "qwen3": "qwen3",
    "qwen3_thinking": "deepseek_r1",
    "deepseek_v3_1": "deepseek_v3",
    "deepseek_r1_distill": "deepseek_r1",
    "glm4_moe": "glm45",
    "kimi_k2_thinking": "kimi_k2",
    "minimax_m2": "minimax_m2",
    "minimax_m3": "minimax_m3",
    "nemotron_3": "nemotron_v3",
    "seed_oss": "seed_oss",
    "magistral": "mistral",
    "hunyuan": "hunyuan_a13b",
    "hy3": "hy_v3",
    "gemma4": "gemma4",
}
"""By profile. That for OLMo 3 wants its whole vocabulary; that for Cohere gives nothing for a
whole text.
"""
SUFFIX = ":opensource"
"""In Hy3's tags; vLLM's parser is told of it by the checkpoint's config."""
DIFFERENT = {("hunyuan", "cut off"): "theirs takes a thinking without its end for an answer"}
SAMPLES = {
    "both": ("So, so.", "It is 4."),
    "lines": ("One.\nTwo.\n\nThree.", "A\n\nB"),
    "unicode": ("생각 🤔 é", "서울 😀"),
    "looks like a tag": ("a </ b < c", "x < y </p>"),
    "JSON": ("hm", '{"a": [1, {"b": "c"}]}'),
    "no answer": ("So", ""),
    "cut off": ("So and", None),
}
"""Thinking and answer; None where the thinking was cut off."""


def texts(name: str) -> dict[str, str]:
    """What a model writes after a prompt that has opened its thinking."""
    tags = load_profile(PROFILE_FOLDER / f"{name}.toml").format
    end = tags.before_think_end + tags.think_end + tags.after_think_end
    return {key: thought if answer is None else thought + end + answer for key, (thought, answer) in SAMPLES.items()}


def ours(name: str, text: str) -> tuple[str, str]:
    fmt = loaded(name)[1]
    parser = OutputParser(fmt, thinking_open=True, calls=False, calls_in_thinking=False)
    events = parser.feed(ids_of(fmt, text)) + parser.finish()
    thought = "".join(event.text for event in events if isinstance(event, ReasoningText))
    return thought, "".join(event.text for event in events if isinstance(event, AnswerText))


@pytest.fixture(scope="module")
def theirs() -> dict[tuple[str, str], tuple[str, str]]:
    jobs, keys = [], []
    for name, parser in PARSERS.items():
        profile = load_profile(PROFILE_FOLDER / f"{name}.toml")
        told = profile.plain["reasoning"].template_variables or {"enable_thinking": True}
        told = {**told, "thinking": True} if name != "seed_oss" else told
        opened = profile.format.think + profile.format.after_think
        for sample, text in texts(name).items():
            keys.append((name, sample))
            tags = [profile.format.think, profile.format.think_end, *tags_of(FORMS[profile.format.calls or HERMES])]
            tags = [tag.replace(SUFFIX, "") for tag in tags]
            jobs.append((parser, tags, told, (opened + text).replace(SUFFIX, "")))
    command = [sys.executable, "-m", "tests.chat_templates.vllm_reasoning"]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {key: tuple(one) for key, one in zip(keys, json.loads(done.stdout.splitlines()[-1]), strict=True)}


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("name", PARSERS)
def test_thinking_and_answer_are_the_same(
    name: str, sample: str, theirs: dict[tuple[str, str], tuple[str, str]]
) -> None:
    """But for white space next to the tags, which belongs to them here and to the texts there."""
    thought, answer = SAMPLES[sample]
    found = ours(name, texts(name)[sample])
    assert found == (thought, answer or "")
    same = tuple(part.strip() for part in theirs[name, sample]) == found
    assert same is ((name, sample) not in DIFFERENT), theirs[name, sample]

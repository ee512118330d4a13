"""vLLM's own tool parsers find the same calls in what models write, or it is said why not."""

import json
import subprocess
import sys

import pytest

from chat_templates.tool_forms.form import NestedCalls, TaggedCalls, tags_of
from chat_templates.tool_forms.known import FORMS
from tests.chat_templates.tool_forms.forms import ONE_A_SECTION, TOOLS, Call, written
from tests.chat_templates.tool_forms.test_reader import read

PARSERS = {
    "hermes": "hermes",
    "granite3": "granite",
    "hunyuan": "hunyuan_a13b",
    "mistral": "mistral",
    "deepseek-v3.1": "deepseek_v31",
    "deepseek-v3": "deepseek_v3",
    "kimi": "kimi_k2",
    "qwen3-coder": "qwen3_coder",
    "seed-oss": "seed_oss",
    "glm": "glm47",
    "minimax": "minimax_m2",
    "minimax-m3": "minimax_m3",
    "hy3": "hy_v3",
    "dsml": "deepseek_v32",
    "dsml-v4": "deepseek_v4",
    "dsml-v4.1": "deepseek_v41",
    "gemma4": "gemma4",
    "apertus": "apertus",
    "kimi-k3": "kimi_k3",
    "pythonic": "pythonic",
    "olmo3": "olmo3",
    "lfm2": "lfm2",
}
SAMPLES: dict[str, list[Call]] = {
    "one": [("weather", {"city": "Rome", "days": 3})],
    "several": [("weather", {"city": "Rome"}), ("now", {}), ("weather", {"city": "Oslo", "exact": True})],
    "unicode": [("weather", {"city": "서울 😀 é"})],
    "nested": [("weather", {"city": "Rome", "tags": ["a", "b c"], "where": {"a": 1}})],
    "quotes": [("weather", {"city": 'a "b" \\ c'})],
    "lines": [("weather", {"city": "a\nb"})],
    "looks like a number": [("weather", {"city": "42"})],
    "looks like JSON": [("weather", {"city": '{"a": 1}'})],
    "numbers": [("weather", {"city": "x", "days": -7, "share": 0.5})],
    "tag in a text": [("weather", {"city": "a < b </p> c"})],
    "nothing": [("now", {})],
}
OTHER_TAGS = ["<think>", "</think>", "<tool_calls>", "</tool_calls>", "<|tool_call|>", "<|start_of_role|>"]
SUFFIX = ":opensource"
"""In Hy3's tags; vLLM's parser is told of it by the checkpoint's config."""
CUT = "theirs ends the section, or the call, at a closing tag within a string"
FORMS_CUT = ("hermes", "hunyuan", "kimi", "olmo3", "lfm2", "gemma4", "apertus")
DIFFERENT = {(name, "the closing tag in a string"): CUT for name in FORMS_CUT}


def _texts() -> dict[tuple[str, str], tuple[list[Call], str]]:
    """By form and sample: the calls, and what a model writes, without the tag that opens the section."""
    texts = {}
    for name in PARSERS:
        for sample, calls in SAMPLES.items():
            asked = calls[:1] if name in ONE_A_SECTION else calls
            texts[name, sample] = (asked, written(FORMS[name], asked))
        if not isinstance(form := FORMS[name], TaggedCalls | NestedCalls) and form.close:
            in_a_string: list[Call] = [("weather", {"city": f"a {form.close} b"})]
            texts[name, "the closing tag in a string"] = (in_a_string, written(form, in_a_string))
    return texts


def _tight(name: str, text: str) -> str:
    """Without line breaks between the tags."""
    assert FORMS[name].is_loose  # type: ignore[union-attr]
    return text.replace("\n", "")


TEXTS = _texts()
TEXTS |= {
    ("glm", f"{sample}, as GLM-4.7 writes it"): (calls, _tight("glm", text))
    for (name, sample), (calls, text) in TEXTS.items()
    if name == "glm" and sample != "lines"
}


@pytest.fixture(scope="module")
def theirs() -> dict[tuple[str, str], list[Call]]:
    jobs = []
    for (name, _), (_, text) in TEXTS.items():
        tags = [tag.replace(SUFFIX, "") for tag in (*tags_of(FORMS[name]), *OTHER_TAGS)]
        jobs.append((PARSERS[name], list(dict.fromkeys(tags)), TOOLS, (FORMS[name].open + text).replace(SUFFIX, "")))
    command = [sys.executable, "-m", "tests.chat_templates.tool_forms.vllm_parsers"]
    done = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    return {key: [tuple(call) for call in calls] for key, calls in zip(TEXTS, answers, strict=True)}


@pytest.mark.parametrize(("name", "sample"), TEXTS)
def test_the_same_calls(name: str, sample: str, theirs: dict[tuple[str, str], list[Call]]) -> None:
    calls, text = TEXTS[name, sample]
    ours, _, _ = read(FORMS[name], [text])
    assert ours == calls
    assert (ours == theirs[name, sample]) is ((name, sample) not in DIFFERENT), theirs[name, sample]

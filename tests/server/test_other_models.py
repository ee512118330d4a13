"""Models that are not ours: hybrids with their own templates in both modes, one that does not think, real weights."""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.client_text import plain as plain_text
from chat_templates.format import ChatFormat
from chat_templates.messages import check_messages
from chat_templates.settings import DIRECT, FormatSettings
from chat_templates.tool_forms.form import JsonCalls
from server.app import create_app
from server.cli import main
from server.core import grammars
from server.core.call_rules import CallRules
from server.modes.profile import GENERAL, PROFILE_FOLDER, load_profile, shipped_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.chat_templates.conversations import CLOCK
from tests.chat_templates.foreign import STYLES_OF, granite, qwen, smol
from tests.fake_engine import FakeEngine, Script, script_of
from tests.real_server import RealServer
from tests.server.conftest import HELLO, always
from tests.server.test_streaming import events_of, gathered, plain

CHAT = "/v1/chat/completions"
PROFILES = Path(__file__).parents[2] / "docs" / "profiles.md"
EOS = 2  # of the small tokenizers
HYBRIDS = {"qwen": qwen(), "granite": granite()}


@asynccontextmanager
async def serving(
    fmt: ChatFormat, script: Script, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, FakeEngine]]:
    engine = FakeEngine(script, (EOS,), **options)
    profile = load_profile(PROFILE_FOLDER / "granite3.toml" if fmt is HYBRIDS["granite"] else GENERAL)
    app = create_app(engine, Settings(served_model_name="m"), profile, fmt)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://twogear") as http:
        yield http, engine


def written(fmt: ChatFormat, *parts: str) -> list[int]:
    """What a model writes: each part a token of its own where there is one, else text; then the end of its turn."""
    control = fmt.vocabulary.control
    return [i for part in parts for i in ([control[part]] if part in control else fmt.encode_text(part))] + [EOS]


def shown(engine: FakeEngine, fmt: ChatFormat, generation: int = 0) -> str:
    return fmt.decode(engine.seen[generation].prompt_ids, show_control=True)


@pytest.mark.parametrize("chunks", [(1,), (3, 2), (50,)])
@pytest.mark.parametrize("name", sorted(HYBRIDS))
async def test_thinking_and_answer_are_told_apart(name: str, chunks: tuple[int, ...]) -> None:
    fmt = HYBRIDS[name]
    gap = fmt.settings.after_think_end
    ids = written(fmt, "so < 5\n", "</think>", f"{gap}7")
    body = {"messages": HELLO, "reasoning_mode": "reasoning"}
    async with serving(fmt, always(ids), chunks=chunks) as (http, engine):
        answer = (await http.post(CHAT, json=body)).json()
        streaming = {"stream": True, "stream_options": {"include_usage": True}}
        streamed = gathered(events_of((await http.post(CHAT, json={**body, **streaming})).text))
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("so < 5", "7")
    assert streamed == plain(answer)
    assert shown(engine, fmt).endswith(fmt.settings.think + fmt.settings.after_think)
    assert name != "granite" or "<response>" in shown(engine, fmt)  # what its template says where it shall think
    usage = answer["usage"]
    assert usage["completion_tokens"] == len(ids)
    tag = len(written(fmt, "</think>")) - 1
    before = len(written(fmt, "so < 5\n")) - 1
    assert abs(usage["completion_tokens_details"]["reasoning_tokens"] - before) <= (tag > 1)  # a token may hold both


@pytest.mark.parametrize("name", sorted(HYBRIDS))
async def test_standard_mode_answers_at_once(name: str) -> None:
    fmt = HYBRIDS[name]
    async with serving(fmt, always(written(fmt, "7"))) as (http, engine):
        answer = (await http.post(CHAT, json={"messages": HELLO})).json()
    assert answer["choices"][0]["message"]["content"] == "7"
    assert not fmt.is_thinking_open(engine.seen[0].prompt_ids)
    assert ("<think>\n\n</think>\n\n" in shown(engine, fmt)) == (name == "qwen")


@pytest.mark.parametrize("budget", [0, 1, 5, 40])
@pytest.mark.parametrize("name", sorted(HYBRIDS))
async def test_a_budget_is_kept_and_the_thinking_closed_as_the_family_does(name: str, budget: int) -> None:
    fmt = HYBRIDS[name]
    prompt = len(fmt.render(HELLO, STYLES_OF[name]["reasoning"]))
    ids = fmt.encode_text("abc " * 200)
    body = {"messages": HELLO, "reasoning_mode": "reasoning", "thinking_token_budget": budget, "max_tokens": 90}
    async with serving(fmt, script_of(ids, prompt), chunks=(7,)) as (http, engine):
        answer = (await http.post(CHAT, json=body)).json()
    choice = answer["choices"][0]
    assert choice["reasoning_finish_reason"] == "budget"
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] <= max(budget, 1)
    assert shown(engine, fmt, -1).endswith(f"</think>{fmt.settings.after_think_end}")
    assert "</think>" not in choice["message"]["reasoning_content"] + choice["message"]["content"]
    assert choice["message"]["content"]


@pytest.mark.parametrize("name", sorted(HYBRIDS))
async def test_a_grammar_binds_the_answer_alone(name: str) -> None:
    fmt = HYBRIDS[name]
    thinking = written(fmt, "hm\n", "</think>")[:-1]

    def script(prompt_ids: list[int]) -> Iterator[int]:
        return iter(written(fmt, "{}") if not fmt.is_thinking_open(prompt_ids) else [*thinking, EOS])

    body = {"messages": HELLO, "reasoning_mode": "reasoning", "response_format": {"type": "json_object"}}
    async with serving(fmt, script, chunks=(4,)) as (http, engine):
        answer = (await http.post(CHAT, json=body)).json()
    first, second = engine.seen
    assert first.sampling.grammar is None
    assert second.sampling.grammar is not None
    assert shown(engine, fmt, 1).endswith(f"hm\n</think>{fmt.settings.after_think_end}")
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "{}")


async def test_tool_calls_of_the_commonest_form() -> None:
    fmt = HYBRIDS["qwen"]
    ids = written(fmt, "<tool_call>", '\n{"name": "now", "arguments": {"a": 1}}\n', "</tool_call>")
    async with serving(fmt, always(ids)) as (http, engine):
        body = {"messages": HELLO, "tools": [CLOCK]}
        answer = (await http.post(CHAT, json=body)).json()
        await http.post(CHAT, json={**body, "tool_choice": "required"})
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    (made,) = choice["message"]["tool_calls"]
    assert (made["function"]["name"], json.loads(made["function"]["arguments"])) == ("now", {"a": 1})
    assert f'<[{fmt.tool_call_id}]> "\\n"?' in (engine.seen[1].sampling.grammar or "")


def test_a_grammar_for_calls_between_tags_that_are_text() -> None:
    rules = CallRules(JsonCalls(inside="\n"), [("now", True)], {}, grammars.of_schema).text(several=False)
    grammars.check(f"start: calls\n{rules}")
    assert '"<tool_call>" "\\n"?' in rules


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"reasoning_mode": "reasoning"}, "reasoning_mode"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
        ({"tools": [CLOCK]}, "tools"),
    ],
)
async def test_what_a_model_cannot_do_is_refused_with_the_field(fields: dict[str, Any], param: str) -> None:
    fmt = smol()
    async with serving(fmt, always([EOS])) as (http, _):
        response = await http.post(CHAT, json={"messages": HELLO, **fields})
        names = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert names == ["m", "m:standard"]


def test_the_profile_is_that_of_the_family() -> None:
    assert shipped_profile("exaone4", "").name == "twogear_tiny.toml"
    assert shipped_profile("exaone4", "{{ messages }}").name == "exaone4.toml"
    assert shipped_profile("qwen3_moe", "enable_thinking").name == "qwen3.toml"
    assert shipped_profile("deepseek_v3", "{% if thinking %}").name == "deepseek_v3_1.toml"
    assert shipped_profile("deepseek_v3", "<think>") == GENERAL  # R1
    assert shipped_profile("granite", "thinking <response>").name == "granite3.toml"
    assert shipped_profile("granite", "") == GENERAL
    assert shipped_profile("never-seen", "") == GENERAL


def test_no_two_profiles_ask_for_the_same() -> None:
    """Else which of them is taken were a matter of their names."""
    matches = [load_profile(path).match for path in PROFILE_FOLDER.glob("*.toml")]
    asked = [(kind, match.strictness) for match in matches if match for kind in match.model_types]
    assert len(asked) == len(set(asked))


def test_every_profile_is_in_the_docs() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| `(\w+)` \|$", PROFILES.read_text(), re.MULTILINE)
    profiles = {path.stem: load_profile(path) for path in PROFILE_FOLDER.glob("*.toml")}
    shipped = {name: profile.modes["reasoning"].style.variables for name, profile in profiles.items()}
    assert {name: {switch: True} for name, switch in rows} == shipped


@pytest.mark.parametrize("text", [None, "{% if %}"])
def test_a_wrong_template_is_told_before_anything_starts(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.jinja"
    if text is not None:
        file.write_text(text)
    assert main(["serve", str(EMBEDDED_MODEL), "--port", "0", "--chat-template", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine.jinja" in line if text is None else "line 1" in line


@pytest.fixture(scope="module")
def smollm2() -> Iterator[RealServer]:
    """SmolLM2-135M on vLLM's own Llama: real weights of another family, without a line of `model_impl`.

    In float32: the answer's first token has a rival a tenth of a nat below it, which bfloat16 on some CPUs prefers.
    """
    made = subprocess.run([sys.executable, "-m", "tests.smollm2"], stdout=subprocess.PIPE, text=True, check=True)
    with RealServer(made.stdout.strip(), "--served-model-name", "smollm2", "--", "--dtype", "float32") as server:
        yield server
        assert server.stop() == 0


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_a_real_model_of_another_family(smollm2: RealServer) -> None:
    client = openai.OpenAI(base_url=f"{smollm2.url}/v1", api_key="none")
    asked: dict[str, Any] = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    whole = client.chat.completions.create(**asked)
    assert "Paris" in (whole.choices[0].message.content or "")
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage is not None
    ids = httpx.post(f"{smollm2.url}/tokenize", json={"messages": asked["messages"]}).json()["tokens"]
    assert whole.usage.prompt_tokens == len(ids)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    answer = httpx.post(f"{smollm2.url}/tokenize", json={"prompt": text}).json()["count"]
    assert whole.usage.completion_tokens == answer + 1  # the end of the turn


@pytest.mark.engine
def test_its_limits_and_grammars(smollm2: RealServer) -> None:
    question = [{"role": "user", "content": "The capital of France, as JSON"}]
    schema = {"type": "object", "properties": {"capital": {"type": "string"}}, "required": ["capital"]}
    body = {
        "messages": question,
        "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": schema}},
    }
    answer = httpx.post(smollm2.url + CHAT, json=body, timeout=120).json()["choices"][0]
    assert json.loads(answer["message"]["content"]).keys() == {"capital"}
    refused = httpx.post(smollm2.url + CHAT, json={"messages": question, "reasoning_mode": "reasoning"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reasoning_mode")
    raw = httpx.post(
        f"{smollm2.url}/v1/completions", json={"prompt": "The capital of France is", "max_tokens": 3}, timeout=120
    )
    assert "Paris" in raw.json()["choices"][0]["text"]
    pages = httpx.get(f"{smollm2.url}/metrics").text
    assert 'twogear_kv_pages{group="global",state="free"}' in pages
    assert 'group="sliding"' not in pages


async def test_tags_that_the_engine_takes_for_text_are_not_drawn_where_a_grammar_spells_them() -> None:
    """Added tokens that are not special, as in Qwen3: their bytes fit where their spelling does."""
    fmt = HYBRIDS["qwen"]
    assert fmt.think_end_id in fmt.vocabulary.plain_control_ids
    body = {"messages": HELLO, "reasoning_mode": "reasoning", "structured_outputs": {"choice": ["a</think>b"]}}
    thinking = written(fmt, "hm\n", "</think>")[:-1]

    def script(prompt_ids: list[int]) -> Iterator[int]:
        text = written(fmt, "a", "<", "/think>b")
        return iter(text if not fmt.is_thinking_open(prompt_ids) else [*thinking, EOS])

    async with serving(fmt, script) as (http, engine):
        answer = (await http.post(CHAT, json=body)).json()
        await http.post(CHAT, json={"messages": HELLO, "structured_outputs": {"choice": ["ab"]}})
    first, second, plain_choice = engine.seen
    assert answer["choices"][0]["message"]["content"] == "a</think>b"
    assert first.sampling.logit_bias is None  # the thinking must be able to end
    assert (second.sampling.logit_bias or {})[fmt.think_end_id] == -100.0
    assert plain_choice.sampling.logit_bias is None


async def test_strict_tools_of_a_model_whose_tags_are_text_to_the_engine() -> None:
    fmt = HYBRIDS["qwen"]
    tool = {**CLOCK, "function": {**CLOCK["function"], "strict": True}}
    async with serving(fmt, always(written(fmt, "7"))) as (http, engine):
        await http.post(CHAT, json={"messages": HELLO, "tools": [tool]})
    grammar = engine.seen[0].sampling.grammar
    assert grammar is not None
    assert "calls: call* TEXT?" in grammar
    assert 'text_to_call[suffix="<tool_call>"]: /(.|\\n)*/' in grammar
    grammars.check(grammar)


async def test_a_template_that_wants_arguments_as_an_object_gets_one() -> None:
    """Text that a limit cut off: where the template fails on it, no arguments take its place."""
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": '{"a": "303 +'}}
    messages: list[dict[str, Any]] = [*HELLO, {"role": "assistant", "tool_calls": [call]}, *HELLO]
    template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{% for key, value in c.function.arguments.items() %}{{ key }}{% endfor %}{{ c.function.name }}{% endfor %}"
        "{% endfor %}"
    )
    files = TemplateFiles(template, None, {})
    turns = check_messages(messages)
    assert plain_text(CheckpointTemplate(files, FormatSettings()).render(turns, DIRECT)) == "HinowHi"
    text = template.replace("c.function.arguments.items()", "[(c.function.arguments, 1)]")
    written_out = CheckpointTemplate(TemplateFiles(text, None, {}), FormatSettings()).render(turns, DIRECT)
    assert plain_text(written_out) == 'Hi{"a": "303 +nowHi'

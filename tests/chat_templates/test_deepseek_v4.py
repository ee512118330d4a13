"""DeepSeek-V4's prompts by our template are those of the makers' encoder, as vLLM ships it."""

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from chat_templates.checkpoint import CheckpointTemplate, read_template
from chat_templates.client_text import plain
from chat_templates.messages import check_messages, check_tools
from server.modes.profile import PROFILE_FOLDER, load_profile, styles_of

PROFILE = load_profile(PROFILE_FOLDER / "deepseek_v4.toml")


@pytest.fixture(scope="module")
def encoder() -> ModuleType:
    """The one file, without the rest of vLLM."""
    vllm = importlib.util.find_spec("vllm")
    places = vllm.submodule_search_locations if vllm is not None else None
    path = Path(places[0]) / "tokenizers" / "deepseek_v4_encoding.py" if places else None
    if path is None or not path.is_file():
        pytest.skip("this vLLM has no encoder for DeepSeek-V4")
    spec = importlib.util.spec_from_file_location("deepseek_v4_encoding", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(call_id: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Weather? 서울 <｜User｜>"}
ANSWER = {"role": "assistant", "content": "Sun.", "reasoning_content": "Look out."}
CALLS = [call("1", "weather", city='Rome "x"', days=3, tags=["a"], exact=True), call("2", "now")]
ASKS = {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": CALLS}
CONVERSATIONS: dict[str, list[Any]] = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "several turns": [SYSTEM, USER, ANSWER, USER, ANSWER, USER],
    "without thinking": [USER, {"role": "assistant", "content": "Sun."}, USER],
    "two messages of a user": [USER, USER],
    "calls": [SYSTEM, USER, ASKS, result("1", "Sun"), result("2", "Noon")],
    "results in another order": [USER, ASKS, result("2", "Noon"), result("1", "Sun"), USER],
    "an answer after calls": [USER, ASKS, result("1", "Sun"), result("2", "Noon"), ANSWER, USER],
    "a system message in the middle": [USER, ANSWER, SYSTEM, USER],
    "a system message at the end": [USER, ANSWER, SYSTEM],
    "an answer at the end": [USER, ANSWER],
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "description": "é", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "now", "description": "Time."}},
]


def theirs(
    encoder: ModuleType, conversation: list[Any], tools: list[Any], *, thinks: bool, effort: str, drop: bool
) -> str:
    """As vLLM's tokenizer for it calls the encoder: tools are the first system message's."""
    messages = [
        {("reasoning" if key == "reasoning_content" else key): copy.deepcopy(value) for key, value in message.items()}
        for message in conversation
    ]
    if tools:
        if not any(message["role"] == "system" for message in messages):
            messages.insert(0, {"role": "system"})
        next(message for message in messages if message["role"] == "system")["tools"] = tools
    mode = "thinking" if thinks else "chat"
    made: str = encoder.encode_messages(messages, mode, drop_thinking=drop, reasoning_effort=effort)
    return made


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_the_makers_encoder_writes(name: str, encoder: ModuleType, tmp_path: Path) -> None:
    files = read_template(tmp_path, None, PROFILE.format)
    assert files is not None
    template = CheckpointTemplate(files, PROFILE.format, styles_of(PROFILE.plain))
    conversation = CONVERSATIONS[name]
    for mode in PROFILE.plain.values():
        for effort in ("low", "high", "max"):
            for tools in ([], TOOLS):
                for drop in (True, False):
                    added = {"reasoning_effort": effort, "drop_thinking": drop}
                    style = mode.style.__class__(
                        opens_thinking=mode.thinks, variables=mode.template_variables, added=added
                    )
                    ours = template.render(check_messages(conversation), style, check_tools(tools))
                    assert plain(ours) == theirs(
                        encoder, conversation, tools, thinks=mode.thinks, effort=effort, drop=drop
                    )

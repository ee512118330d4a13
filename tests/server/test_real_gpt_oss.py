"""A small random checkpoint of gpt-oss' architecture through vLLM: channels, levels, budgets and forced calls.

It says nothing sensible, so that what is looked at is what the server and the grammar alone make certain.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chat_templates.foreign import tokenizer_json
from tests.chat_templates.harmony import NAMES, TEMPLATE, TOKENS, small_format
from tests.real_server import RealServer
from tests.server.test_real import ask
from tests.server.test_tool_forms import NAMED, QUESTION, TOOL

pytestmark = pytest.mark.engine
ENDS = ("<|return|>", "<|call|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    folder = tmp_path_factory.mktemp("gpt_oss")
    _make_checkpoint(folder)
    arguments = ("--dtype", "bfloat16", "--max-model-len", "2048", "--enforce-eager")
    with RealServer(str(folder), "--", *arguments) as running:
        yield running


def _make_checkpoint(folder: Path) -> None:
    """Two layers, one of them with a sliding window, and four experts; weights in bf16."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    (folder / "tokenizer.json").write_text(tokenizer_json(list(TOKENS), []))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **NAMES}))
    control = small_format().vocabulary.control
    config = GptOssConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=32,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=4096,
        eos_token_id=control["<|return|>"],
        pad_token_id=control["<|endoftext|>"],
    )
    torch.manual_seed(0)
    model: Any = GptOssForCausalLM(config)
    model.bfloat16().save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [control[end] for end in ENDS]}))


def asked(server: RealServer, **fields: Any) -> Any:
    return ask(server, QUESTION, temperature=0, seed=1, **fields)


def test_what_it_says_at_start(server: RealServer) -> None:
    said = "\n".join(server.output)
    for level in ("low", "medium", "high"):
        assert f'the template is told reasoning_effort = "{level}"' in said
    assert "tool calls as harmony" in said


def test_a_budget_closes_the_thinking(server: RealServer) -> None:
    answer = asked(server, thinking_token_budget=20, max_tokens=60, ignore_eos=True)
    usage, choice = answer["usage"], answer["choices"][0]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 20
    assert choice["reasoning_finish_reason"] == "budget"
    assert "<|" not in choice["message"]["reasoning_content"] + (choice["message"]["content"] or "")


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_forced_call(server: RealServer, choice: Any) -> None:
    answer = asked(server, tools=[TOOL], tool_choice=choice, thinking_token_budget=10, max_tokens=400)["choices"][0]
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    if answer["finish_reason"] != "length":
        assert isinstance(json.loads(call["function"]["arguments"])["city"], str)


def test_an_answer_in_one_of_two_words(server: RealServer) -> None:
    answer = asked(server, structured_outputs={"choice": ["yes", "no"]}, thinking_token_budget=10, max_tokens=100)[
        "choices"
    ][0]
    assert answer["message"]["content"] in ("yes", "no")
    assert answer["finish_reason"] == "stop"

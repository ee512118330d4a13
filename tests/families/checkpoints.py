"""The families' checkpoints: architecture, special tokens and template, at the smallest size that vLLM runs."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chat_templates.foreign import tokenizer_json
from tests.chat_templates.harmony import TEMPLATE as HARMONY
from tests.chat_templates.harmony import TOKENS as HARMONY_TOKENS
from tests.families.templates import CHATML, Turns, template
from tests.server.families import EMPTY, MISTRAL, OPEN, switched

THINK = ("<think>", "</think>")
NONE = ("", "")
CALL = ["<tool_call>", "</tool_call>"]
IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}


@dataclass(frozen=True)
class Family:
    """A checkpoint to be made.

    `special` and `added`: its tokens beside the letters, of which the first of `special` is the padding and `eos` ends
    a turn. `ends`: how the prompts of standard and reasoning mode end; None for a mode that it has not. `config`: what
    its config.json has beside the small sizes.
    """

    model_type: str
    turns: Turns
    special: list[str]
    added: list[str]
    eos: str
    calls: str
    end: str
    ends: tuple[str | None, str | None]
    tags: tuple[str, str] = THINK
    thought: str = "reasoning_content"
    begin: str = ""
    whole: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def template(self) -> str:
        """Its chat template; `whole`, where that is none of ours."""
        return self.whole or self.begin + template(self.turns, self.calls, self.end, self.tags, self.thought)

    def write_texts(self, folder: Path) -> dict[str, int]:
        """Writes tokenizer and template; returns the ids of the tokens with a name."""
        tokenizer = tokenizer_json(self.special, self.added)
        names = {"eos_token": self.eos, "bos_token": self.special[0], "pad_token": self.special[0]}
        (folder / "tokenizer.json").write_text(tokenizer)
        (folder / "chat_template.jinja").write_text(self.template)
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
        )
        return {entry["content"]: entry["id"] for entry in json.loads(tokenizer)["added_tokens"]}

    def make(self, folder: Path) -> None:
        """Writes the checkpoint, in bfloat16 with random weights."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        ids = self.write_texts(folder)
        tokens = {"eos_token_id": ids[self.eos], "pad_token_id": 0, "bos_token_id": 0}
        config = AutoConfig.for_model(self.model_type, **{**SIZES, **tokens, **self.config})
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids[self.eos]}))


SIZES = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
DEEPSEEK = ["<｜User｜>", "<｜Assistant｜>"]
DEEPSEEK_CALLS = [f"<｜tool▁{name}｜>" for name in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")]
FAMILIES = {
    "qwen3": Family(
        "qwen3", CHATML, IM, [*THINK, *CALL], "<|im_end|>", "hermes",
        switched("enable_thinking", "", EMPTY), (EMPTY, OPEN),
    ),
    "glm4_moe": Family(
        "glm4_moe",
        Turns("[gMASK]<sop>", "<|ROLE|>\n", "", "<|assistant|>", "\n<think></think>\n",
              "<|observation|>\n<tool_response>\n{{ m.content }}\n</tool_response>"),
        ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
        [*THINK, *CALL, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
        "<|user|>", "glm", switched("enable_thinking", "", "\n<think></think>\n"),
        ("<think></think>\n", "<think>"),
        config={**MOE, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    "deepseek_v3_1": Family(
        "deepseek_v3",
        Turns("{{ bos_token }}", "<｜User｜>", "", "<｜Assistant｜>", "</think>",
              "<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>"),
        ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"],
        [*DEEPSEEK, *DEEPSEEK_CALLS, *THINK],
        "<｜end▁of▁sentence｜>", "deepseek-v3.1", "{% if thinking %}<think>{% else %}</think>{% endif %}",
        ("</think>", "<think>"),
        config={
            **MOE, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
            "first_k_dense_replace": 1, "topk_method": "noaux_tc", "kv_lora_rank": 512, "q_lora_rank": 32,
            "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32, "num_key_value_heads": 4,
        },
    ),
    "minimax_m2": Family(
        "minimax_m2", Turns("]~!b[", "]~b]ROLE\n", "[e~[\n", "]~b]ai\n"),
        ["]!p~[", "]~!b[", "]~b]", "[e~["], [*THINK, "<minimax:tool_call>", "</minimax:tool_call>"],
        "[e~[", "minimax", OPEN, (None, OPEN),
        config={**MOE, "num_local_experts": 4, "rotary_dim": 16, "attn_type_list": [1, 1], "scoring_func": "sigmoid",
                "use_routing_bias": True},
    ),
    "gemma4": Family(
        "gemma4_text",
        Turns("{{ bos_token }}", "<|turn>ROLE\n", "<turn|>\n", "<|turn>model\n"),
        ["<pad>", "<bos>", "<eos>", "<|turn>", "<turn|>"],
        ["<|channel>", "<channel|>", "<|think|>", "<|tool_call>", "<tool_call|>", '<|"|>'],
        "<turn|>", "gemma4",
        "{% if not enable_thinking | default(false) %}<|channel>thought\n<channel|>{% endif %}",
        ("<|channel>thought\n<channel|>", "<|channel>thought\n"), ("<|channel>", "<channel|>"),
        config={"global_head_dim": 32, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
                "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64,
                "vocab_size_per_layer_input": 384},
    ),
    "nemotron_3": Family(
        "nemotron_h", CHATML, IM, [*THINK, *CALL], "<|im_end|>", "qwen3-coder",
        switched("enable_thinking", OPEN, "<think></think>"), ("<think></think>", OPEN),
        config={"hybrid_override_pattern": "M*-", "num_hidden_layers": 3, "mamba_num_heads": 4, "mamba_head_dim": 32,
                "ssm_state_size": 16, "n_groups": 1, "layers_block_type": ["mamba", "attention", "mlp"],
                "expand": 2, "chunk_size": 16},
    ),
    "lfm2_5": Family(
        "lfm2", CHATML, ["<|pad|>", "<|startoftext|>", *IM], [*THINK, "<|tool_call_start|>", "<|tool_call_end|>"],
        "<|im_end|>", "lfm2", "", ("<think></think>", "<think>"), thought="thinking",
        config={"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1], "block_auto_adjust_ff_dim": False,
                "block_dim": 64, "block_ff_dim": 64, "block_multiple_of": 1, "block_ffn_dim_multiplier": 1.0,
                "block_norm_eps": 1e-5, "conv_dim": 64, "conv_dim_out": 64, "conv_bias": False, "conv_L_cache": 3,
                "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "granite4": Family(
        "granitemoehybrid",
        Turns("", "<|start_of_role|>ROLE<|end_of_role|>", "<|end_of_text|>\n"),
        ["<|pad|>", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"], CALL, "<|end_of_text|>", "hermes",
        "", ("<|end_of_role|>", None), NONE,
        config={"layer_types": ["mamba", "attention"], "num_local_experts": 0, "shared_intermediate_size": 64,
                "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_expand": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1},
    ),
    "olmo3_think": Family(
        "olmo3", CHATML, IM, ["<functions>", "</functions>", "<function_calls>", "</function_calls>"],
        "<|im_end|>", "olmo3", "<think>", (None, "<think>"),
        config={"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "seed_oss": Family(
        "seed_oss", Turns("", "<seed:bos>ROLE\n", "<seed:eos>"),
        ["<seed:pad>", "<seed:bos>", "<seed:eos>"],
        ["<seed:think>", "</seed:think>", "<seed:cot_budget_reflect>", "</seed:cot_budget_reflect>",
         "<seed:tool_call>", "</seed:tool_call>"],
        "<seed:eos>", "seed-oss",
        "{% if thinking_budget == 0 %}<seed:think><seed:cot_budget_reflect>0</seed:cot_budget_reflect></seed:think>"
        "{% endif %}",
        ("</seed:think>", "<seed:think>"), ("<seed:think>", "</seed:think>"),
        begin="{% if thinking_budget is defined %}<seed:bos>system\nBudget: {{ thinking_budget }}<seed:eos>{% endif %}",
    ),
    "hunyuan": Family(
        "hunyuan_v1_dense", Turns("<|startoftext|>", "<|ROLE|>", "<|eos|>", "<|assistant|>"),
        ["<|pad|>", "<|startoftext|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"],
        [*THINK, "<answer>", "</answer>", "<tool_calls>", "</tool_calls>"],
        "<|eos|>", "hunyuan", switched("enable_thinking", "", EMPTY), (EMPTY, OPEN),
    ),
    "magistral": Family(
        "ministral3",
        Turns("<s>", "{% if 'ROLE' == 'system' %}[SYSTEM_PROMPT]{% else %}[INST]{% endif %}",
              "", "[/INST]", "", "[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]"),
        ["<pad>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_RESULTS]",
         "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", *MISTRAL],
        [], "</s>", "mistral", "", (None, "[THINK]"), MISTRAL,
    ),
    "smollm3": Family(
        "smollm3", CHATML, IM, [*THINK, *CALL], "<|im_end|>", "hermes",
        switched("enable_thinking", "", EMPTY), (EMPTY, OPEN),
        begin="{% set tools = xml_tools | default(none) %}",
    ),
    "exaone4_5": Family(
        "exaone_moe", Turns("", "[|ROLE|]\n", "[|endofturn|]\n"),
        ["[PAD]", "[BOS]", "[|endofturn|]", "[|system|]", "[|user|]", "[|assistant|]", "[|tool|]"],
        [*THINK, *CALL], "[|endofturn|]", "hermes", switched("enable_thinking", OPEN, EMPTY), (EMPTY, OPEN),
        config={**MOE, "num_experts": 4, "num_shared_experts": 1, "sliding_window": 64, "sliding_window_pattern": "LG",
                "layer_types": ["sliding_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"],
                "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    ),
    "gpt_oss": Family(
        "gpt_oss", CHATML, list(HARMONY_TOKENS), [], "<|return|>", "harmony", "",
        (None, "<|start|>assistant<|channel|>analysis<|message|>"), whole=HARMONY,
        config={"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32,
                "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "apertus": Family(
        "apertus", Turns("<s>", "<|ROLE_start|>", "<|ROLE_end|>", "<|assistant_start|>"),
        ["<pad>", "<s>", "</s>", *(f"<|{role}_{end}|>" for role in ("system", "user", "assistant", "tool", "developer")
                                   for end in ("start", "end"))],
        ["<|inner_prefix|>", "<|inner_suffix|>", "<|tools_prefix|>", "<|tools_suffix|>"],
        "<|assistant_end|>", "apertus", "", ("<|assistant_start|>", "<|inner_prefix|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        begin="<|developer_start|>{% if enable_thinking %}on{% else %}off{% endif %}<|developer_end|>",
        config={"hidden_act": "xielu"},
    ),
}  # fmt: skip
"""By the names of the profiles that have to be chosen for them."""

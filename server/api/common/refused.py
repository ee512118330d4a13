"""Fields of other APIs that would change the result and are not here, or not in all of our APIs: as data, by what in
them asks for nothing.

Ignoring such a field would silently change what is asked. A field that only tunes one of these (`mirostat_tau`,
`dry_base`, `xtc_threshold`) changes nothing while that one is off, and is ignored.
"""

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from server.errors import BadRequestError


class Unsupported(NamedTuple):
    """`off`: the values beside null that ask for nothing. `instead`: the field to use, if there is one."""

    off: tuple[object, ...] = ()
    instead: str = ""


RETIRED = {
    "functions": "tools", "function_call": "tool_choice",
    "guided_json": "structured_outputs", "guided_regex": "structured_outputs", "guided_choice": "structured_outputs",
    "guided_grammar": "structured_outputs",
}  # fmt: skip
"""Fields of before, of OpenAI and of vLLM, and what they are called today."""
UNSUPPORTED = {
    # OpenAI's and vLLM's
    "audio": Unsupported(),
    "chat_template": Unsupported(),
    "documents": Unsupported(([],)),
    "length_penalty": Unsupported((1,)),
    "logits_processors": Unsupported(([],)),
    "modalities": Unsupported((["text"], [])),
    "truncate_prompt_tokens": Unsupported(),
    "use_beam_search": Unsupported((False,)),
    "web_search_options": Unsupported(),
    "best_of": Unsupported((1,), "n"),
    "echo": Unsupported((False,)),
    "add_special_tokens": Unsupported((False,)),
    "repetition_detection": Unsupported(),
    # llama.cpp's samplers, which KoboldCpp, Aphrodite, TabbyAPI and text-generation-webui have too
    "mirostat": Unsupported((0,)),
    "mirostat_mode": Unsupported((0,)),
    "typical_p": Unsupported((0, 1)),
    "typical": Unsupported((0, 1)),
    "tfs": Unsupported((0, 1)),
    "tfs_z": Unsupported((0, 1)),
    "top_a": Unsupported((0,)),
    "top_n_sigma": Unsupported((0, -1)),
    "nsigma": Unsupported((0, -1)),
    "xtc_probability": Unsupported((0,)),
    "dry_multiplier": Unsupported((0,)),
    "dynatemp_range": Unsupported((0,)),
    "dynamic_temperature": Unsupported((False,)),
    "adaptive_target": Unsupported((-1,)),
    "smoothing_factor": Unsupported((0,)),
    "epsilon_cutoff": Unsupported((0,)),
    "eta_cutoff": Unsupported((0,)),
    "skew": Unsupported((0,)),
    "samplers": Unsupported(([],)),
    "sampler_priority": Unsupported(([],)),
    "temperature_last": Unsupported((False,)),
    "repeat_penalty": Unsupported((1, 0), "repetition_penalty"),
    "rep_pen": Unsupported((1, 0), "repetition_penalty"),
    "encoder_repetition_penalty": Unsupported((1,)),
    "no_repeat_ngram_size": Unsupported((0,)),
    "penalty_alpha": Unsupported((0,)),
    "guidance_scale": Unsupported((1,)),
    "negative_prompt": Unsupported(("",)),
    "banned_strings": Unsupported(([], ""), "bad_words"),
    "banned_tokens": Unsupported(([], ""), "logit_bias"),
    "custom_token_bans": Unsupported(("",), "logit_bias"),
    "num_beams": Unsupported((1,)),
    # llama.cpp's other fields
    "n_predict": Unsupported((-1,), "max_tokens"),
    "num_predict": Unsupported((-1,), "max_tokens"),
    "t_max_predict_ms": Unsupported((0, -1)),
    "lora": Unsupported(([],)),
    "grammar_lazy": Unsupported((False,)),
    # SGLang's
    "lora_path": Unsupported(([], "")),
    "custom_logit_processor": Unsupported(),
    "stop_regex": Unsupported(([], "")),
    "no_stop_trim": Unsupported((False,), "include_stop_str_in_output"),
    "return_hidden_states": Unsupported((False,)),
    # text-generation-inference's
    "max_new_tokens": Unsupported((), "max_tokens"),
    "min_new_tokens": Unsupported((0,), "min_tokens"),
    "watermark": Unsupported((False,)),
    "tool_prompt": Unsupported(),
    "adapter_id": Unsupported(("",)),
    # Mistral's and Ollama's
    "random_seed": Unsupported((), "seed"),
    "safe_prompt": Unsupported((False,)),
    "format": Unsupported(("",), "response_format"),
    # OpenAI's and Anthropic's newest
    "moderation": Unsupported(),
    "compaction": Unsupported(),
    "thread": Unsupported(),
    # What some of our own APIs have, and others not
    "json_schema": Unsupported((), "response_format"),
    "response_format": Unsupported(({"type": "text"},), "response_format"),
    "structured_outputs": Unsupported((), "structured_outputs"),
    "regex": Unsupported(("",), "structured_outputs"),
    "ebnf": Unsupported(("",), "structured_outputs"),
    "grammar": Unsupported(("",), "structured_outputs"),
    "output_config": Unsupported(({},), "response_format"),
    "output_format": Unsupported((), "response_format"),
    "text": Unsupported(({}, {"format": {"type": "text"}}), "response_format"),
    "reasoning_effort": Unsupported((), "reasoning_effort"),
    "reasoning": Unsupported(({},), "thinking"),
    "chat_template_kwargs": Unsupported(({},), "thinking"),
    "enable_thinking": Unsupported((), "thinking"),
    "think": Unsupported((), "thinking"),
    "thinking_budget": Unsupported((), "thinking_token_budget"),
    "thinking_budget_tokens": Unsupported((), "thinking_token_budget"),
    "reasoning_budget": Unsupported((), "thinking_token_budget"),
    "include_reasoning": Unsupported((True,), "thinking"),
    "separate_reasoning": Unsupported((True,)),
    "stream_reasoning": Unsupported((True,)),
    "max_completion_tokens": Unsupported((), "max_tokens"),
    "max_output_tokens": Unsupported((), "max_tokens"),
    "stop": Unsupported(([],), "stop"),
    "stop_sequences": Unsupported(([],), "stop"),
    "stop_token_ids": Unsupported(([],)),
    "include_stop_str_in_output": Unsupported((False,)),
    "min_tokens": Unsupported((0,)),
    "ignore_eos": Unsupported((False,)),
    "n": Unsupported((1,)),
    "seed": Unsupported(),
    "logit_bias": Unsupported(({},)),
    "allowed_token_ids": Unsupported(([],)),
    "bad_words": Unsupported(([],)),
    "min_p": Unsupported((0,)),
    "presence_penalty": Unsupported((0,)),
    "frequency_penalty": Unsupported((0,)),
    "repetition_penalty": Unsupported((1,)),
    "priority": Unsupported((0,)),
    "logprobs": Unsupported((False,)),
    "top_logprobs": Unsupported((0,), "logprobs"),
    "reasoning_logprobs": Unsupported((False,)),
    "prompt_logprobs": Unsupported(),
    "skip_special_tokens": Unsupported((True,)),
    "return_token_ids": Unsupported((False,)),
    "return_tokens_as_token_ids": Unsupported((False,)),
    "parallel_tool_calls": Unsupported((True,), "parallel_tool_calls"),
    "add_generation_prompt": Unsupported((True,)),
    "continue_final_message": Unsupported((False,)),
    "input": Unsupported(("", []), "messages"),
    "prompt": Unsupported(("", []), "messages"),
    "suffix": Unsupported(("",)),
    "system": Unsupported(("", []), "messages"),
    "instructions": Unsupported(("",), "messages"),
    "previous_response_id": Unsupported((), "messages"),
    "conversation": Unsupported((), "messages"),
    "include": Unsupported(([],)),
    "truncation": Unsupported(("disabled",)),
    "background": Unsupported((False,)),
    "context_management": Unsupported(([], {})),
    "mcp_servers": Unsupported(([],)),
    "container": Unsupported(),
}
"""By name."""


def refuse_retired(fields: dict[str, Any], retired: Mapping[str, str] = RETIRED) -> None:
    """Raises BadRequestError for a field of `retired` that asks for something.

    Beside a newer one that asks for the same a retired one is nothing to complain of.
    """
    newer_form = fields.get("structured_outputs")
    same = newer_form if isinstance(newer_form, dict) else {}
    for name, newer in retired.items():
        value = fields.get(name)
        if value not in (None, [], "none", "auto") and same.get(name.removeprefix("guided_")) != value:
            raise BadRequestError(f"{name} is not supported: use {newer}.", param=name)


def refuse_unsupported(fields: dict[str, Any], own: Container[str], names: Mapping[str, str] | None = None) -> None:
    """Raises BadRequestError for a field of UNSUPPORTED that asks for something and is not one of the body's `own`.

    `names`: what the fields to use instead are called in this API, where that differs; "" where it has none.
    """
    for name in fields.keys() & UNSUPPORTED.keys():
        (off, instead), value = UNSUPPORTED[name], fields[name]
        if name in own or value is None or value in off:
            continue
        use = (names or {}).get(instead, instead)
        way = f"use {use}" if use else "leave it out"
        raise BadRequestError(f"{name} is not supported here, and would change the result: {way}.", param=name)

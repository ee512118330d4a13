"""A small chat template in gpt-oss' manner, and tokenizers with its tokens: a small one, and o200k_harmony itself."""

import functools
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.format import ChatFormat
from server.modes.profile import PROFILE_FOLDER, load_profile, styles_of
from tests.chat_templates.foreign import tokenizer_json

# After the template of openai/gpt-oss-120b: system and developer apart, channels, the thinking of tool turns kept until
# an answer follows, the name of a tool from the call before. Tools are listed by their names alone.
TEMPLATE = """
{{- '<|start|>system<|message|>' ~ (model_identity or 'You are ChatGPT, a large language model trained by OpenAI.') }}
{{- '\\nKnowledge cutoff: 2024-06\\n\\nReasoning: ' ~ (reasoning_effort or 'medium') ~ '\\n\\n# Valid channels: ' }}
{{- 'analysis, commentary, final. Channel must be included for every message.' }}
{%- if tools %}{{- "\\nCalls to these tools must go to the commentary channel: 'functions'." }}{%- endif %}
{{- '<|end|>' }}
{%- set first = messages[0].content if messages[0].role in ('system', 'developer') else '' %}
{%- set turns = messages[1:] if messages[0].role in ('system', 'developer') else messages %}
{%- if first or tools %}
    {{- '<|start|>developer<|message|>' }}
    {%- if first %}{{- '# Instructions\\n\\n' ~ first }}{%- endif %}
    {%- if first and tools %}{{- '\\n\\n' }}{%- endif %}
    {%- if tools %}
        {{- '# Tools\\n\\n## functions\\n\\nnamespace functions {\\n\\n' }}
        {%- for tool in tools %}
            {{- '// ' ~ tool.function.description ~ '\\ntype ' ~ tool.function.name ~ ' = () => any;\\n\\n' }}
        {%- endfor %}
        {{- '} // namespace functions' }}
    {%- endif %}
    {{- '<|end|>' }}
{%- endif %}
{%- set called = namespace(name=none) %}
{%- for message in turns %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {%- set later = namespace(answer=false) %}
        {%- for other in turns[loop.index:] %}
            {%- if other.role == 'assistant' and not other.tool_calls %}{%- set later.answer = true %}{%- endif %}
        {%- endfor %}
        {%- if message.content and message.thinking %}
            {{- raise_exception('Cannot pass both content and thinking in an assistant message with tool calls!') }}
        {%- endif %}
        {%- if (message.content or message.thinking) and not later.answer %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' }}
            {{- (message.content or message.thinking) ~ '<|end|>' }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start|>assistant to=functions.' ~ call.name ~ '<|channel|>commentary json<|message|>' }}
        {{- (call.arguments | tojson) ~ '<|call|>' }}
        {%- set called.name = call.name %}
    {%- elif message.role == 'assistant' %}
        {%- if loop.last and not add_generation_prompt and message.thinking %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' ~ message.thinking ~ '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' ~ message.content ~ '<|end|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start|>functions.' ~ called.name ~ ' to=assistant<|channel|>commentary<|message|>' }}
        {{- message.content ~ '<|end|>' }}
    {%- else %}
        {{- '<|start|>' ~ message.role ~ '<|message|>' ~ message.content ~ '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}
"""
TOKENS = (
    *("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|constrain|>", "<|channel|>", "<|start|>", "<|end|>"),
    *("<|message|>", "<|call|>", "<|endofprompt|>"),
)
NAMES = {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"}
PROFILE = load_profile(PROFILE_FOLDER / "gpt_oss.toml")


def format_with(tokenizer: str) -> ChatFormat:
    """gpt-oss' format with a tokenizer.json."""
    files = TemplateFiles(TEMPLATE, None, NAMES)
    return ChatFormat.of_checkpoint(tokenizer, CheckpointTemplate(files, PROFILE.format, styles_of(PROFILE.plain)))


@functools.cache
def small_format() -> ChatFormat:
    """With a small tokenizer."""
    return format_with(tokenizer_json(list(TOKENS), []))


VOCABULARY = "litellm_core_utils/tokenizers/fb374d419588a4632f3f557e76b4b70aebbca790"
"""The file that tiktoken keeps o200k_base in, as litellm ships it."""


def vocabulary_folder() -> Path | None:
    """A folder that openai-harmony finds its vocabulary in, without network; None where that is not to be had."""
    litellm = importlib.util.find_spec("litellm")
    places = litellm.submodule_search_locations if litellm is not None else None
    if not places or not (file := Path(places[0]) / VOCABULARY).is_file():
        return None
    folder = Path(tempfile.mkdtemp())
    (folder / "o200k_base.tiktoken").symlink_to(file)
    return folder


@functools.cache
def encoding() -> Any:
    """o200k_harmony of openai-harmony, of which vLLM brings a fork."""
    harmony = pytest.importorskip("openai_harmony")
    folder = vocabulary_folder()
    if folder is None:
        pytest.skip("o200k_base is not here")
    os.environ["TIKTOKEN_ENCODINGS_BASE"] = str(folder)
    return harmony.load_harmony_encoding(harmony.HarmonyEncodingName.HARMONY_GPT_OSS)

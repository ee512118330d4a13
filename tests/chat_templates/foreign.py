"""Small chat formats in the manner of other model families: templates, and tokenizers that fit them."""

import json
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from chat_templates.checkpoint import CheckpointTemplate, TemplateFiles
from chat_templates.format import ChatFormat
from chat_templates.settings import FormatSettings, PromptStyle
from tests.chat_templates.small_tokenizers import byte_level_with
from tests.styles import STYLES, Mode

# In Qwen3's manner: the switch closes the block, nothing opens it; the thinking of past turns is cut out of their text.
QWEN = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' ~ (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last and reasoning %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls %}
            {%- if not loop.first or content %}{{- '\\n' }}{%- endif %}
            {{- '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- call.function.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

# In SmolLM2's manner: no thinking, no tools, a system message of its own.
SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are small.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# In Gemma's manner: BOS, roles of other names, the system message in the user's, turns that must alternate.
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}{%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant") }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {{- (first if loop.first else '') ~ message['content'] | trim }}
    {{- '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# In Granite's manner: the switch has another name and changes the system message; the tags are ordinary text.
GRANITE = """
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}
{%- else %}{%- set system = 'You are stone.' %}{%- set rest = messages %}{%- endif %}
{%- if thinking %}
    {%- set system = system ~ ' Think between <think></think>, answer between <response></response>.' %}
{%- endif %}
{{- '<|start|>system<|of|>' ~ system ~ '<|end|>\\n' }}
{%- for message in rest %}
    {{- '<|start|>' ~ message.role ~ '<|of|>' }}
    {%- if message.role == 'assistant' and '</think>' in message.content %}
        {{- message.content.split('</think>')[1] | replace('<response>', '') | replace('</response>', '') | trim }}
    {%- else %}{{- message.content }}{%- endif %}
    {{- '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|of|>' }}{%- endif %}
"""

GRANITE_SETTINGS = FormatSettings(
    after_think="",
    before_think_end="",
    after_think_end="<response>",
    hidden=("<response>", "</response>"),
)
IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
IM_NAMES = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
THINKING = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]


def make_foreign(
    template: str,
    special: list[str],
    added: list[str] | None = None,
    settings: FormatSettings | None = None,
    names: dict[str, str] | None = None,
) -> ChatFormat:
    """The format of a checkpoint with this template, `special` tokens and other `added` ones."""
    settings = settings or FormatSettings()
    checkpoint = CheckpointTemplate(TemplateFiles(template, None, names or IM_NAMES), settings)
    tokenizer = tokenizer_json(special, added or [])
    return ChatFormat.of_checkpoint(tokenizer, checkpoint, settings)


def tokenizer_json(special: list[str], added: list[str], bos: str | None = None) -> str:
    """A small byte-level tokenizer.json; with `bos`, one that puts it before all text."""
    tokenizer: Tokenizer = byte_level_with([*special, *added])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    if bos is not None:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer.to_str()


def qwen() -> ChatFormat:
    """Tags are added tokens that are not special."""
    return make_foreign(QWEN, IM, THINKING, FormatSettings(inside_tool_call="\n"))


def smol() -> ChatFormat:
    """Tags would be ordinary text."""
    return make_foreign(SMOL, IM)


def gemma() -> ChatFormat:
    """Line breaks are tokens of their own, too."""
    names = {"bos_token": "<bos>", "eos_token": "<eos>"}
    return make_foreign(GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], ["\n\n", "<table>"], None, names)


def granite() -> ChatFormat:
    """Tags are ordinary text."""
    names = {"eos_token": "<|end|>"}
    return make_foreign(GRANITE, ["<|start|>", "<|of|>", "<|end|>"], None, GRANITE_SETTINGS, names)


STYLES_OF: dict[str, dict[Mode, PromptStyle]] = {
    **dict.fromkeys(("qwen", "smol", "gemma"), STYLES),
    "granite": {
        "standard": PromptStyle(opens_thinking=False, variables={"thinking": False}),
        "reasoning": PromptStyle(opens_thinking=True, variables={"thinking": True}),
    },
}
FOREIGN = {"qwen": (qwen, QWEN), "smol": (smol, SMOL), "gemma": (gemma, GEMMA), "granite": (granite, GRANITE)}


def plain_rendering(template: str, **context: Any) -> str:
    """The template run on plain strings, as transformers does it."""

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **layout: json.dumps(value, ensure_ascii=False, **layout)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template).render(**context)

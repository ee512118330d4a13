"""Small chat templates in the families' manner, tools and calls among it: written after those of the makers, which
`tests.published` compares.
"""

from typing import NamedTuple

_ARGUMENTS = "{% for k, v in f.arguments.items() %}KEY{{ v if v is string else v | tojson }}END{% endfor %}"
CALLS = {
    "hermes": '\n<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>',
    "hunyuan": '<tool_calls>[{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}]</tool_calls>',
    "mistral": "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}",
    "apertus": '<|tools_prefix|>[{"{{ f.name }}": {{ f.arguments | tojson }}}]<|tools_suffix|>',
    "deepseek-v3.1": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ f.arguments | tojson }}"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "glm": "\n<tool_call>{{ f.name }}\n"
    + _ARGUMENTS.replace("KEY", "<arg_key>{{ k }}</arg_key>\n<arg_value>").replace("END", "</arg_value>\n")
    + "</tool_call>",
    "minimax": '\n<minimax:tool_call>\n<invoke name="{{ f.name }}">\n'
    + _ARGUMENTS.replace("KEY", '<parameter name="{{ k }}">').replace("END", "</parameter>\n")
    + "</invoke>\n</minimax:tool_call>",
    "qwen3-coder": "<tool_call>\n<function={{ f.name }}>\n"
    + _ARGUMENTS.replace("KEY", "<parameter={{ k }}>\n").replace("END", "\n</parameter>\n")
    + "</function>\n</tool_call>\n",
    "seed-oss": "\n<seed:tool_call>\n<function={{ f.name }}>\n"
    + _ARGUMENTS.replace("KEY", "<parameter={{ k }}>").replace("END", "</parameter>\n")
    + "</function>\n</seed:tool_call>",
    "gemma4": "<|tool_call>call:{{ f.name }}{% raw %}{{% endraw %}{% for k, v in f.arguments.items() %}{{ k }}:"
    '{% if v is string %}<|"|>{{ v }}<|"|>{% else %}{{ v | tojson }}{% endif %}'
    "{% if not loop.last %},{% endif %}{% endfor %}}<tool_call|>",
    "lfm2": "<|tool_call_start|>[{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}="
    '{% if v is string %}"{{ v }}"{% else %}{{ v }}{% endif %}{% if not loop.last %}, {% endif %}{% endfor %})]'
    "<|tool_call_end|>",
    "olmo3": "<function_calls>{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}="
    "{{ v | tojson }}{% if not loop.last %}, {% endif %}{% endfor %})</function_calls>",
}
"""A past call, by the name of its form."""


class Turns(NamedTuple):
    """What stands before and after a message in a family; a role's name takes the place of ROLE.

    `past`: what stands before an old answer without thinking. `result`: how a tool's result is told.
    """

    begin: str
    open: str
    close: str
    assistant: str = ""
    past: str = ""
    result: str = ""

    @property
    def opens(self) -> str:
        """What stands before an answer."""
        return self.assistant or self.open.replace("ROLE", "assistant")


CHATML = Turns("", "<|im_start|>ROLE\n", "<|im_end|>\n")


def template(turns: Turns, calls: str, end: str, tags: tuple[str, str], thought: str = "reasoning_content") -> str:
    """A whole one. Old thinking stays in the turns after the last question; `end` is the end of a generation prompt."""
    think, think_end = tags
    thinks = f"{think}{{{{ m.{thought} }}}}{think_end}"
    role = (turns.open + "{{ m.content }}" + turns.close).replace("ROLE", "{{ m.role }}")
    kept = f"{{% if m.{thought} and loop.index0 > ns.last %}}{thinks}{{% else %}}{turns.past}{{% endif %}}"
    result = turns.result or (turns.open + "{{ m.content }}" + turns.close).replace("ROLE", "tool")
    return "".join(
        [
            "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}",
            "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}",
            turns.begin,
            "{% if tools %}"
            + turns.open.replace("ROLE", "system")
            + "{% for t in tools %}{{ t | tojson }} {% endfor %}",
            turns.close.replace("ROLE", "system"),
            "{% endif %}{% for m in messages %}{% if m.role == 'assistant' %}",
            turns.opens + (kept if think else "") + "{{ m.content }}{% for c in m.tool_calls or [] %}",
            "{% set f = c.function %}" + CALLS[calls] + "{% endfor %}" + turns.close.replace("ROLE", "assistant"),
            "{% elif m.role == 'tool' %}" + result,
            "{% else %}" + role + "{% endif %}",
            "{% endfor %}{% if add_generation_prompt %}" + turns.opens + end + "{% endif %}",
        ]
    )

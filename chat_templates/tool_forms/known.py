"""The forms of tool calls that the server knows by name, and the form that a checkpoint's template writes.

What each is after: the templates of the named families; the oracle's test holds the readers to vLLM's parsers.
"""

from collections.abc import Iterable

from chat_templates.tool_forms.form import (
    BareKeyCalls,
    CallForm,
    JsonCalls,
    NamedJsonCalls,
    NestedCalls,
    PythonCalls,
    TaggedCalls,
)

HERMES = "hermes"
FORMS: dict[str, CallForm] = {
    HERMES: JsonCalls(inside="\n"),
    "granite3": JsonCalls(open="<|tool_call|>", close="", is_list=True),
    "hunyuan": JsonCalls(open="<tool_calls>", close="</tool_calls>", is_list=True),
    "mistral-list": JsonCalls(open="[TOOL_CALLS]", close="", is_list=True),
    "mistral": NamedJsonCalls(open="[TOOL_CALLS]", name_end="[ARGS]", id_open="[CALL_ID]"),
    "deepseek-v3.1": NamedJsonCalls(
        open="<｜tool▁calls▁begin｜>",
        close="<｜tool▁calls▁end｜>",
        call_open="<｜tool▁call▁begin｜>",
        name_end="<｜tool▁sep｜>",
        call_close="<｜tool▁call▁end｜>",
    ),
    "deepseek-v3": NamedJsonCalls(
        open="<｜tool▁calls▁begin｜>",
        close="<｜tool▁calls▁end｜>",
        call_open="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        name_end="\n```json\n",
        call_close="\n```<｜tool▁call▁end｜>",
        between="\n",
    ),
    "kimi": NamedJsonCalls(
        open="<|tool_calls_section_begin|>",
        close="<|tool_calls_section_end|>",
        call_open="<|tool_call_begin|>",
        name_end="<|tool_call_argument_begin|>",
        call_close="<|tool_call_end|>",
        name_prefix="functions.",
        is_numbered=True,
    ),
    "harmony": NamedJsonCalls(
        open="<|start|>assistant<|channel|>commentary to=functions.",
        name_end=" <|constrain|>json<|message|>",
        answer_open="<|start|>assistant<|channel|>final<|message|>",
    ),
    "qwen3-coder": TaggedCalls(
        open="<tool_call>",
        close="</tool_call>",
        call_open="<function=",
        name_end=">",
        call_close="</function>",
        param_open="<parameter=",
        key_end=">",
        param_close="</parameter>",
        trims=True,
    ),
    "seed-oss": TaggedCalls(
        open="<seed:tool_call>",
        close="</seed:tool_call>",
        call_open="<function=",
        name_end=">",
        call_close="</function>",
        param_open="<parameter=",
        key_end=">",
        param_close="</parameter>",
        shares_section=True,
    ),
    "glm": TaggedCalls(
        open="<tool_call>",
        close="</tool_call>",
        call_open="",
        name_end="",
        call_close="",
        param_open="<arg_key>",
        key_end="</arg_key>\n<arg_value>",
        param_close="</arg_value>",
        is_loose=True,
    ),
    "hy3": TaggedCalls(
        open="<tool_calls:opensource>",
        close="</tool_calls:opensource>",
        call_open="<tool_call:opensource>",
        name_end="<tool_sep:opensource>",
        call_close="</tool_call:opensource>",
        param_open="<arg_key:opensource>",
        key_end="</arg_key:opensource>\n<arg_value:opensource>",
        param_close="</arg_value:opensource>",
        shares_section=True,
    ),
    "minimax": TaggedCalls(
        open="<minimax:tool_call>",
        close="</minimax:tool_call>",
        call_open='<invoke name="',
        name_end='">',
        call_close="</invoke>",
        param_open='<parameter name="',
        key_end='">',
        param_close="</parameter>",
        shares_section=True,
    ),
    "minimax-m3": NestedCalls(
        open="]<]minimax[>[<tool_call>",
        close="]<]minimax[>[</tool_call>",
        mark="]<]minimax[>[",
        call_open=']<]minimax[>[<invoke name="',
        name_end='">',
        call_close="]<]minimax[>[</invoke>",
    ),
    "dsml": TaggedCalls(
        open="<｜DSML｜function_calls>",
        close="</｜DSML｜function_calls>",
        call_open='<｜DSML｜invoke name="',
        name_end='">',
        call_close="</｜DSML｜invoke>",
        param_open='<｜DSML｜parameter name="',
        key_end='" string="false">',
        text_key_end='" string="true">',
        param_close="</｜DSML｜parameter>",
        shares_section=True,
    ),
    "dsml-v4": TaggedCalls(
        open="<｜DSML｜tool_calls>",
        close="</｜DSML｜tool_calls>",
        call_open='<｜DSML｜invoke name="',
        name_end='">',
        call_close="</｜DSML｜invoke>",
        param_open='<｜DSML｜parameter name="',
        key_end='" string="false">',
        text_key_end='" string="true">',
        param_close="</｜DSML｜parameter>",
        shares_section=True,
    ),
    "dsml-v4.1": TaggedCalls(
        open="<｜DSML｜ calls>",
        close="</｜DSML｜ calls>",
        call_open='<｜DSML｜ invoke name="',
        name_end='">',
        call_close="</｜DSML｜ invoke>",
        param_open='<｜DSML｜ parameter name="',
        key_end='" string="false">',
        text_key_end='" string="true">',
        param_close="</｜DSML｜ parameter>",
        shares_section=True,
    ),
    "kimi-k3": TaggedCalls(
        open="<|open|>tools<|sep|>",
        close="<|close|>tools<|sep|>",
        call_open='<|open|>call tool="',
        index_open='" index="',
        name_end='"<|sep|>',
        call_close="<|close|>call<|sep|>",
        param_open='<|open|>argument key="',
        key_end='" type="object"<|sep|>',
        text_key_end='" type="string"<|sep|>',
        json_key_ends={name: f'" type="{name}"<|sep|>' for name in ("number", "boolean", "null", "array")},
        param_close="<|close|>argument<|sep|>",
        space="",
        shares_section=True,
        lead="<|close|>response<|sep|>",
    ),
    "cohere": JsonCalls(
        open="<|START_ACTION|>",
        close="<|END_ACTION|>",
        name="tool_name",
        arguments="parameters",
        id="tool_call_id",
        is_list=True,
    ),
    "apertus": JsonCalls(open="<|tools_prefix|>", close="<|tools_suffix|>", by_name=True, is_list=True),
    "gemma4": BareKeyCalls(open="<|tool_call>", close="<tool_call|>", call_open="call:", quote='<|"|>'),
    "pythonic": PythonCalls(),
    "olmo3": PythonCalls(open="<function_calls>", close="</function_calls>", is_list=False),
    "lfm2": PythonCalls(open="<|tool_call_start|>", close="<|tool_call_end|>"),
    "llama3": JsonCalls(open="", close="", arguments="parameters", between="; "),
}
"""By the names that `calls` in a profile may have."""

MARKERS: dict[str, tuple[str, ...]] = {
    HERMES: ("<tool_call>",),
    "granite3": ("<|tool_call|>",),
    "hunyuan": ("<tool_calls>",),
    "mistral-list": ("[TOOL_CALLS]",),
    "mistral": ("[TOOL_CALLS]", "[ARGS]"),
    "deepseek-v3.1": ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
    "deepseek-v3": ("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "```json"),
    "kimi": ("<|tool_calls_section_begin|>",),
    "harmony": ("<|start|>assistant", "<|channel|>", "<|message|>"),
    "qwen3-coder": ("<tool_call>", "<function=", "<parameter="),
    "seed-oss": ("<seed:tool_call>",),
    "glm": ("<tool_call>", "<arg_key>"),
    "hy3": ("<tool_calls:opensource>",),
    "minimax": ("<minimax:tool_call>",),
    "minimax-m3": ("]<]minimax[>[",),
    "dsml": ("｜DSML｜",),
    "dsml-v4": ("｜DSML｜", "tool_calls>"),
    "dsml-v4.1": ("｜DSML｜", "｜ calls>"),
    "kimi-k3": ("<|open|>", "<|close|>", "<|sep|>"),
    "cohere": ("<|START_ACTION|>",),
    "apertus": ("<|tools_prefix|>",),
    "gemma4": ("<|tool_call>",),
    "pythonic": ("[func_name1(params_name1=",),
    "olmo3": ("<function_calls>",),
    "lfm2": ("<|tool_call_start|>",),
    "llama3": ('"parameters": dictionary of argument name',),
}
"""What stands in the template, or among the tokens, of a checkpoint that writes the form."""


def form_in(template: str, tokens: Iterable[str] = ()) -> str | None:
    """The name of the one form whose markers all stand in a template, or else are tokens; None for none or several.

    A form whose markers are a part of another's that is there too does not count.
    """
    found = {name for name, marks in MARKERS.items() if all(mark in template for mark in marks)}
    known = set(tokens)
    found = found or {name for name, marks in MARKERS.items() if known.issuperset(marks)}
    widest = [name for name in found if not any(set(MARKERS[name]) < set(MARKERS[other]) for other in found)]
    return widest[0] if len(widest) == 1 else None

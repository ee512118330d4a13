"""Small chat templates in the manner of the families that have a profile: turns, switch and the prompt's end."""

from dataclasses import dataclass

TURN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last and PAST %}OPEN{{ PAST }}CLOSE{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
)


@dataclass(frozen=True)
class Small:
    """What a family's template does at its prompt's end, and how our prompts end in standard and reasoning mode, and
    in `auto` before the tag that the model writes itself.

    `past`: the name under which it looks for past thinking. None for a mode that the family has not.
    """

    model_type: str
    end: str
    standard: str | None
    reasoning: str | None
    tags: tuple[str, str] = ("<think>", "</think>")
    begin: str = ""
    past: str = "reasoning_content"
    marks: str = ""
    auto: str | None = None

    @property
    def template(self) -> str:
        """The whole of it; `marks` are texts by which the family's templates are known."""
        past = f"m.{self.past}"
        turn = TURN.replace("PAST", past).replace("OPEN", self.tags[0]).replace("CLOSE", self.tags[1])
        turn = turn if self.reasoning is not None else turn.replace(self.tags[0], "").replace(self.tags[1], "")
        end = f"{{% if add_generation_prompt %}}<|im_start|>assistant\n{self.end}{{% endif %}}"
        return f"{{# {self.marks} #}}{self.begin}{turn}{end}"


def switched(name: str, opened: str, closed: str) -> str:
    """A prompt's end that is `opened` unless the variable is false."""
    return f"{{% if {name} is defined and not {name} %}}{closed}{{% else %}}{opened}{{% endif %}}"


EMPTY = "<think>\n\n</think>\n\n"
OPEN = "<think>\n"
MISTRAL = ("[THINK]", "[/THINK]")
SMALL = {
    "exaone4_5": Small("exaone_moe", switched("enable_thinking", OPEN, EMPTY), EMPTY, OPEN),
    "qwen3": Small("qwen3", switched("enable_thinking", "", EMPTY), EMPTY, OPEN),
    "qwen3_instruct": Small("qwen3_moe", "", "assistant\n", None),
    "qwen3_thinking": Small("qwen3_next", OPEN, None, OPEN),
    "qwen3_coder": Small("qwen3_moe", "", "assistant\n", None, marks="<function="),
    "qwen3_5": Small("qwen3_5_moe", switched("enable_thinking", OPEN, EMPTY), EMPTY, OPEN),
    "qwen3_8": Small(
        "qwen3_5",
        "{% if reasoning_effort | default('xhigh') not in ['low', 'medium', 'xhigh'] %}"
        "{{ raise_exception('Unexpected reasoning effort.') }}{% endif %}" + switched("enable_thinking", OPEN, EMPTY),
        EMPTY,
        OPEN,
    ),
    "deepseek_v3_1": Small(
        "deepseek_v3", "{% if thinking %}<think>{% else %}</think>{% endif %}", "</think>", "<think>"
    ),
    "deepseek_v3_2": Small("deepseek_v32", switched("enable_thinking", "<think>", "</think>"), "</think>", "<think>"),
    "glm4_moe": Small(
        "glm_moe_dsa", switched("enable_thinking", "", "<think></think>\n"), "<think></think>\n", "<think>"
    ),
    "kimi_k2": Small("kimi_k2", "", "assistant\n", None),
    "kimi_k2_thinking": Small("kimi_k2", "", None, "<think>"),
    "kimi_k2_5": Small("kimi_k25", switched("thinking", "<think>", "<think></think>"), "<think></think>", "<think>"),
    "minimax_m2": Small("minimax_m2", OPEN, None, OPEN),
    "minimax_m3": Small(
        "minimax_m3_vl",
        "{% if thinking_mode == 'enabled' %}<mm:think>{% elif thinking_mode == 'disabled' %}</mm:think>{% endif %}",
        "</mm:think>",
        "<mm:think>",
        ("<mm:think>", "</mm:think>"),
        begin="Thinking mode: {{ thinking_mode }}.",
        auto="<mm:think>",
    ),
    "nemotron_3": Small("nemotron_h", switched("enable_thinking", OPEN, "<think></think>"), "<think></think>", OPEN),
    "magistral": Small("mistral3", "", None, "[THINK]", MISTRAL),
    "mistral_small_4": Small("mistral4", "", "assistant\n", "[THINK]", MISTRAL, begin="{{ reasoning_effort }}"),
    "granite3": Small(
        "granite", "", "assistant\n", "<think>", begin="{% if thinking %}Use <think></think><response>.{% endif %}"
    ),
    "granite4": Small("granitemoehybrid", "", "assistant\n", None),
    "hunyuan": Small("hunyuan_v1_dense", switched("enable_thinking", "", EMPTY), EMPTY, OPEN),
    "hy3": Small(
        "hy_v3",
        "{% if reasoning_effort == 'no_think' %}<think:opensource></think:opensource>"
        "{% else %}<think:opensource>{% endif %}",
        "</think:opensource>",
        "<think:opensource>",
        ("<think:opensource>", "</think:opensource>"),
    ),
    "gemma4": Small(
        "gemma4",
        "{% if not enable_thinking | default(false) %}<|channel>thought\n<channel|>{% endif %}",
        "<|channel>thought\n<channel|>",
        "assistant\n<|channel>thought\n",
        ("<|channel>", "<channel|>"),
    ),
    "lfm2_5": Small("lfm2_moe", "", "<think></think>", "<think>", past="thinking"),
    "olmo3_think": Small("olmo3", "<think>", None, "<think>"),
    "olmo3_instruct": Small("olmo3", "", "assistant\n", None),
    "smollm3": Small("smollm3", switched("enable_thinking", "", EMPTY), EMPTY, OPEN),
    "seed_oss": Small(
        "seed_oss",
        "{% if thinking_budget == 0 %}<seed:think><seed:cot_budget_reflect>{% endif %}",
        "<seed:think><seed:cot_budget_reflect></seed:think>",
        "<seed:think>",
        ("<seed:think>", "</seed:think>"),
        begin="{% if thinking_budget is defined %}Budget: {{ thinking_budget }}.{% endif %}",
    ),
    "apertus": Small(
        "apertus",
        "",
        "assistant\n",
        "<|inner_prefix|>",
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        begin="{% if enable_thinking %}Deliberation: enabled{% endif %}",
    ),
    "cohere_command": Small(
        "cohere2",
        switched("enable_thinking", "", "<|START_THINKING|><|END_THINKING|>"),
        "<|START_THINKING|><|END_THINKING|>",
        "<|START_THINKING|>",
        ("<|START_THINKING|>", "<|END_THINKING|>"),
    ),
    "solar_open": Small(
        "solar_open",
        "{% if reasoning_effort in ['low', 'minimal'] %}<|think|><|end|>{% endif %}",
        "<|think|><|end|>",
        "<|think|>",
        ("<|think|>", "<|end|>"),
    ),
    "phi4_reasoning": Small("phi3", "", None, OPEN),
    "deepseek_r1_distill": Small("qwen2", OPEN, EMPTY, OPEN, marks="<｜User｜><｜Assistant｜>"),
}
"""By the names of the shipped profiles."""

"""What clients of other servers send, and what it means here in our own words: one row a dialect.

docs/api/chat.md shows the rows as a table, and a test sends each of them: what the engine is asked for is the same as
for the fields that it stands for, or the request is refused by the name of the field. The fields themselves are those
of the bodies in `server.api`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

Fields = Mapping[str, Any]

SCHEMA: dict[str, Any] = {"enum": ["a", "b"]}
_ON, _OFF = {"reasoning_mode": "reasoning"}, {"reasoning_mode": "standard"}
_HIDDEN = {"reasoning": {"enabled": True, "exclude": True}}
_JSON = {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}


class Dialect(NamedTuple):
    """Chat fields that clients of `peers` send, and the fields that they stand for; or the one that is refused."""

    peers: str
    sent: Fields
    means: Fields | str


DIALECTS = (
    Dialect("OpenAI", {"reasoning_effort": "none"}, _OFF),
    Dialect("OpenAI", {"reasoning_effort": "max"}, {**_ON, "thinking_token_budget": -1}),
    Dialect("OpenRouter", {"reasoning": {"effort": "max"}}, {"reasoning_effort": "max"}),
    Dialect("OpenRouter", {"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
    Dialect("OpenRouter", {"reasoning": {"max_tokens": 100}}, {**_ON, "thinking_token_budget": 100}),
    Dialect("OpenRouter", {"reasoning": {"enabled": True, "exclude": True}}, {**_ON, "include_reasoning": False}),
    Dialect("Anthropic", {"thinking": {"type": "adaptive"}}, _ON),
    Dialect("Anthropic", {"thinking": {"type": "enabled", "budget_tokens": 9}}, {**_ON, "thinking_token_budget": 9}),
    Dialect("DeepSeek", {"thinking": {"type": "disabled"}}, _OFF),
    Dialect("vLLM, SGLang", {"chat_template_kwargs": {"enable_thinking": True}}, _ON),
    Dialect("vLLM, SGLang", {"chat_template_kwargs": {"thinking": False}}, _OFF),
    Dialect("Alibaba, SiliconFlow", {"enable_thinking": True}, _ON),
    Dialect("Alibaba, SiliconFlow", {"thinking_budget": 100}, {**_ON, "thinking_token_budget": 100}),
    Dialect("Ollama", {"think": True}, _ON),
    Dialect("Ollama", {"think": False}, _OFF),
    Dialect("Ollama", {"think": "low"}, {"reasoning_effort": "low"}),
    Dialect("llama.cpp", {"thinking_budget_tokens": 100}, {**_ON, "thinking_token_budget": 100}),
    Dialect("llama.cpp", {"reasoning_budget": -1}, {**_ON, "thinking_token_budget": -1}),
    Dialect("llama.cpp", {"reasoning_budget": 0}, _OFF),
    Dialect("vLLM", {**_ON, "include_reasoning": False}, _HIDDEN),
    Dialect("SGLang", {**_ON, "separate_reasoning": False}, "separate_reasoning"),
    Dialect("SGLang", {**_ON, "stream_reasoning": False}, "stream_reasoning"),
    Dialect("OpenAI", {"top_p": 0}, {"temperature": 0}),
    Dialect("llama.cpp, Together", {"response_format": {"type": "json_object", "schema": SCHEMA}}, _JSON),
    Dialect("text-generation-inference", {"response_format": {"type": "json_object", "value": SCHEMA}}, _JSON),
    Dialect("llama.cpp", {"response_format": {"type": "json_schema", "schema": SCHEMA}}, _JSON),
    Dialect(
        "", {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    Dialect("SGLang, llama.cpp", {"json_schema": SCHEMA}, _JSON),
    Dialect("SGLang", {"regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
    Dialect("SGLang", {"ebnf": 'root ::= "a"'}, {"structured_outputs": {"grammar": 'root ::= "a"'}}),
    Dialect("llama.cpp", {"grammar": 'root ::= "a"'}, {"structured_outputs": {"grammar": 'root ::= "a"'}}),
    Dialect("vLLM before 0.12", {"guided_json": SCHEMA}, "guided_json"),
    Dialect(
        "vLLM, both ways", {"guided_grammar": 'start: "a"', "structured_outputs": {"grammar": 'start: "a"'}},
        {"structured_outputs": {"grammar": 'start: "a"'}},
    ),
    Dialect("vLLM", {"chat_template": "{{ messages }}"}, "chat_template"),
    Dialect("vLLM", {"use_beam_search": True}, "use_beam_search"),
    Dialect("OpenAI", {"modalities": ["text", "audio"]}, "modalities"),
    Dialect("llama.cpp", {"mirostat": 2, "mirostat_tau": 5}, "mirostat"),
    Dialect("llama.cpp", {"dry_multiplier": 0.8}, "dry_multiplier"),
    Dialect("llama.cpp", {"xtc_probability": 0.5}, "xtc_probability"),
    Dialect("llama.cpp", {"repeat_penalty": 1.1}, "repeat_penalty"),
    Dialect("llama.cpp", {"n_predict": 5}, "n_predict"),
    Dialect(
        "llama.cpp, all off",
        {"mirostat": 0, "mirostat_tau": 5, "typical_p": 1.0, "dry_multiplier": 0, "xtc_probability": 0.0},
        {},
    ),
    Dialect("text-generation-inference", {"typical_p": 0.9}, "typical_p"),
    Dialect("SGLang", {"stop_regex": "a+"}, "stop_regex"),
)  # fmt: skip
"""Fields that mean the same here as where they come from need no row."""

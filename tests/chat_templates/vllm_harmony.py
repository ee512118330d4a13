"""What vLLM's parser for gpt-oss reads in texts: a process of its own, from JSON on its input to JSON on its output.

The environment names the folder of openai-harmony's vocabulary.
"""

import json
import sys
from typing import Any


def read(texts: list[str]) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Of each text the thinking, the answer, and names and arguments of the calls."""
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding
    from vllm.parser.harmony import HarmonyParser
    from vllm.reasoning.gptoss_reasoning_parser import GptOssReasoningParser
    from vllm.tool_parsers.gptoss_tool_parser import GptOssToolParser

    encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)

    class Parser(HarmonyParser):
        reasoning_parser_cls = GptOssReasoningParser
        tool_parser_cls = GptOssToolParser

    class Tokenizer:
        def encode(self, text: str, **_: Any) -> list[int]:
            return list(encoding.encode(text, allowed_special="all"))

        def get_vocab(self) -> dict[str, int]:
            return {}

    made: Any = Parser
    found = []
    for text in texts:
        ids = encoding.encode(text.removeprefix("<|start|>assistant"), allowed_special="all")
        thought, answer, calls = made(Tokenizer()).parse("", None, True, ids)
        found.append((thought or "", answer or "", [(call.name, call.arguments) for call in calls or ()]))
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(read(json.load(sys.stdin))))

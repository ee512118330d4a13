"""What vLLM's reasoning parsers find in texts: a process of its own, from JSON on its input to JSON on its output.

Each job is a parser's name, the tags that are tokens, the variables of the chat template, and a text.
"""

import json
import sys
from typing import Any

from tests.chat_templates.tool_forms.vllm_parsers import Tokenizer

Job = tuple[str, list[str], dict[str, Any], str]


def found(parser: str, tags: list[str], told: dict[str, Any], text: str) -> tuple[str, str]:
    """Thinking and answer; empty where there is none."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.reasoning import ReasoningParserManager

    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": told}
    request = ChatCompletionRequest.model_validate(body)
    made: Any = ReasoningParserManager.get_reasoning_parser(parser)
    thought, answer = made(Tokenizer(tags), chat_template_kwargs=told).extract_reasoning(text, request)
    return thought or "", answer or ""


if __name__ == "__main__":
    jobs: list[Job] = json.load(sys.stdin)
    print("\n" + json.dumps([found(*job) for job in jobs]))

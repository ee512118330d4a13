"""What vLLM's tool parsers find in texts: a process of its own, from JSON on its input to JSON on its output.

Each job is a parser's name, the tags that are tokens, the tools' schemas by name, and a text.
"""

import json
import sys
from typing import Any

Job = tuple[str, list[str], dict[str, Any], str]


class Tokenizer:
    """As much of one as the parsers ask for: every tag is a token."""

    is_fast = True
    chat_template = None

    def __init__(self, tags: list[str]) -> None:
        self.all_special_tokens = tags
        self._vocabulary = {tag: 1000 + index for index, tag in enumerate(tags)}

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary

    def encode(self, text: str, **_: Any) -> list[int]:
        return [self._vocabulary.get(text, 1)]

    def decode(self, _ids: list[int], **_options: Any) -> str:
        return ""

    def convert_ids_to_tokens(self, ids: list[int], **_: Any) -> list[str]:
        return [""] * len(ids)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self._vocabulary.get(token)

    def tokenize(self, text: str) -> list[str]:
        return [text]


def found(parser: str, tags: list[str], schemas: dict[str, Any], text: str) -> list[tuple[str, Any]]:
    """The calls; the text of arguments that are no JSON."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    tools = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in schemas.items()]
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": tools}
    request = ChatCompletionRequest.model_validate(body)
    made: Any = ToolParserManager.get_tool_parser(parser)
    calls = made(Tokenizer(tags), request.tools).extract_tool_calls(text, request).tool_calls
    return [(call.function.name, _value(call.function.arguments or "{}")) for call in calls]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    jobs: list[Job] = json.load(sys.stdin)
    answers = [found(*job) for job in jobs]
    print("\n" + json.dumps(answers))

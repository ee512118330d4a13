"""The tables of docs/api/ and docs/options.md, made from the fields, responses, errors, options, profiles and metrics.

That of vLLM's metrics is in docs/observability.md. `python -m server.commands.reference` renews those in the files,
each between `<!-- table NAME -->` and `<!-- end -->`. The prose around them is written by hand; a test holds both
against the code.
"""

import re
from collections.abc import Callable
from pathlib import Path

from server.api.chat.body import ChatRequest
from server.api.chat.schema import ChatCompletion, ChatCompletionChunk, ControlResult
from server.api.common.control_body import ControlRequest
from server.api.common.rendered import RenderedRequest
from server.api.common.sampling import DrawingFields, SamplingFields
from server.api.common.schema import ErrorResponse
from server.api.completions.body import CompletionRequest
from server.api.completions.schema import TextCompletion
from server.api.messages.body import MessagesRequest
from server.api.messages.schema import AnthropicError, AnthropicMessage, MessageControl, MessageEvent, TokensCount
from server.api.responses.body import ResponseRequest
from server.api.responses.schema import CompactedResponse, ResponseEvent, ResponseItems, ResponseObject
from server.api.service.schema import AnthropicModels, Models, Unhealthy, Versions
from server.api.tokens.body import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest
from server.api.tokens.schema import Detokenized, Tokenized
from server.commands.reference.fields import answer, fields
from server.commands.reference.tables import (
    anthropic_errors,
    call_forms,
    dialects,
    errors,
    families,
    families_checked,
    metrics,
    options,
    profiles,
    unsupported,
)

DOCS = Path(__file__).parents[3] / "docs"
FILES = [DOCS / "api.md", *sorted((DOCS / "api").glob("*.md")), DOCS / "options.md"]
OBSERVABILITY = DOCS / "observability.md"
PROFILES = DOCS / "profiles.md"
FAMILIES = DOCS / "families.md"
TABLE = re.compile(r"(<!-- table (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def render(document: str) -> str:
    """The document with all its tables made anew; raises KeyError for one that does not exist."""
    return TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[4]}", document)


TABLES: dict[str, Callable[[], str]] = {
    "shared fields": lambda: fields(SamplingFields),
    "chat fields": lambda: fields(ChatRequest, SamplingFields),
    "completion fields": lambda: fields(CompletionRequest, SamplingFields),
    "tokenize fields": lambda: fields(TokenizeTextRequest),
    "tokenize chat fields": lambda: fields(TokenizeChatRequest, ChatRequest),
    "detokenize fields": lambda: fields(DetokenizeRequest),
    "control fields": lambda: fields(ControlRequest),
    "chat response": lambda: answer(ChatCompletion),
    "chat event": lambda: answer(ChatCompletionChunk),
    "messages fields": lambda: fields(MessagesRequest),
    "messages response": lambda: answer(AnthropicMessage),
    "messages event": lambda: answer(MessageEvent),
    "message control response": lambda: answer(MessageControl),
    "count tokens response": lambda: answer(TokensCount),
    "anthropic models response": lambda: answer(AnthropicModels),
    "anthropic error response": lambda: answer(AnthropicError),
    "anthropic errors": anthropic_errors,
    "families": families,
    "families checked": families_checked,
    "responses fields": lambda: fields(ResponseRequest, DrawingFields),
    "responses response": lambda: answer(ResponseObject),
    "responses event": lambda: answer(ResponseEvent),
    "responses items": lambda: answer(ResponseItems),
    "compacted response": lambda: answer(CompactedResponse),
    "completion response": lambda: answer(TextCompletion),
    "control response": lambda: answer(ControlResult),
    "rendered response": lambda: answer(RenderedRequest),
    "tokenize response": lambda: answer(Tokenized),
    "detokenize response": lambda: answer(Detokenized),
    "models response": lambda: answer(Models),
    "health response": lambda: answer(Unhealthy),
    "version response": lambda: answer(Versions),
    "error response": lambda: answer(ErrorResponse),
    "dialects": dialects,
    "call forms": call_forms,
    "unsupported fields": unsupported,
    "errors": errors,
    "options": options,
    "profiles": profiles,
    "metrics": metrics,
    "vllm metrics": lambda: metrics(of_vllm=True),
}

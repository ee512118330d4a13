"""The body of `POST /v1/chat/completions`: which fields there are, their types and ranges.

The fields themselves stand in `server.api.common`; `server.api.chat.admission` says what they mean.
"""

from server.api.common.conversation import ChatFields
from server.api.common.fields import checked, read_object, refuse_misspelt
from server.api.common.refused import RETIRED, UNSUPPORTED, refuse_retired, refuse_unsupported

# The fields beyond OpenAI's own whose misspellings are refused: ignoring one would silently change what is asked.
EXTENSIONS = (
    "reasoning_mode", "thinking_token_budget", "reasoning_effort", "reasoning", "thinking", "chat_template_kwargs",
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "structured_outputs",
    "reasoning_logprobs", "continue_final_message", "add_generation_prompt", "priority", "return_token_ids",
    "cache_salt",
    "enable_thinking", "thinking_budget", "thinking_budget_tokens", "reasoning_budget", "include_reasoning",
    "separate_reasoning", "stream_reasoning", "allowed_token_ids", "bad_words", "skip_special_tokens",
    "include_stop_str_in_output", "prompt_logprobs", "return_tokens_as_token_ids", "json_schema",
)  # fmt: skip


class ChatRequest(ChatFields):
    """A chat completion."""


def read_chat_request(content: bytes) -> ChatRequest:
    """Parses and checks a body; raises BadRequestError, with `param` where a field is at fault."""
    fields = read_object(content, ChatRequest.model_fields)
    refuse_misspelt(fields, {*ChatRequest.model_fields, *RETIRED, *UNSUPPORTED}, EXTENSIONS)
    refuse_retired(fields)
    refuse_unsupported(fields, ChatRequest.model_fields)
    return checked(ChatRequest, fields)

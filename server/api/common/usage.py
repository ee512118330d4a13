"""OpenAI's token counts of a request."""

from collections.abc import Sequence

from server.core.choice import Choice, cached_tokens
from server.core.plan import Plan
from server.errors import JsonObject


def usage(plan: Plan, choices: Sequence[Choice]) -> JsonObject:
    """The token counts of finished choices."""
    completion_tokens = sum(choice.completion_tokens for choice in choices)
    return {
        "prompt_tokens": plan.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": plan.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens(choices)},
        "completion_tokens_details": {"reasoning_tokens": sum(choice.reasoning_tokens for choice in choices)},
    }

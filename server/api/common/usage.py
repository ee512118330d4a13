"""OpenAI's token counts of a request."""

from server.core.run import Run
from server.errors import JsonObject


def usage(run: Run) -> JsonObject:
    """The token counts of finished choices."""
    completion_tokens = sum(turn.completion_tokens for turn in run.turns)
    return {
        "prompt_tokens": run.job.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": run.job.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": run.job.cached_tokens(run.turns)},
        "completion_tokens_details": {"reasoning_tokens": sum(turn.reasoning_tokens for turn in run.turns)},
    }

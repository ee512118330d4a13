"""OpenAI's token counts of a request."""

from collections.abc import Sequence

from server.core.choice import Choice, cached_tokens, prompt_tokens
from server.core.plan import Plan
from server.errors import JsonObject


def usage(plan: Plan, choices: Sequence[Choice]) -> JsonObject:
    """The token counts of finished choices."""
    prompt, completion = prompt_tokens(choices), sum(choice.completion_tokens for choice in choices)
    reasoning = sum(choice.reasoning_tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached_tokens(choices)},
        "completion_tokens_details": {"reasoning_tokens": reasoning, **apart(plan, choices)},
    }


def apart(plan: Plan, choices: Sequence[Choice]) -> JsonObject:
    """The tokens that are in no other count. Where the choice between two modes was the server's: those of drafts that
    were dropped, and the prompt's that had not to be computed again after them. Where thoughts may end early: those of
    answers that were tried.
    """
    told: JsonObject = {}
    if plan.tells_mode:
        told["draft_tokens"] = sum(choice.draft_tokens for choice in choices)
        told["found_again_tokens"] = sum(choice.found_again or 0 for choice in choices)
    if any(one.tries for one in plan.choices):
        told["trial_tokens"] = sum(choice.trial_tokens for choice in choices)
    return told


def mode_told(choice: Choice, plan: Plan) -> JsonObject:
    """The mode that the server chose, if it did: null where the choice was ended before."""
    return {"reasoning_mode": choice.mode or None} if plan.tells_mode else {}

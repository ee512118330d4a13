"""How many tokens a request may generate, and how they are divided between thinking and answer.

Numbers only; `server.core.generate` spends them.
"""

from collections.abc import Sequence

from server.errors import CONTEXT_EXCEEDED, BadRequestError, ContextLengthError
from server.modes.mode import ThinkClosing
from server.modes.profile import ModeProfile, ThinkingMode
from server.modes.thinking import UNBOUND, Budget, ThinkingPlan

SMALL_LIMIT_SHARE = 4  # at most this part of a limit is the answer's reserve


def the_budget(budgets: Sequence[Budget]) -> Budget | None:
    """The one that all `budgets` are; raises BadRequestError naming two fields that bound the thinking differently."""
    for budget in budgets[1:]:
        if budget.value != budgets[0].value:
            raise BadRequestError(
                f"{budgets[0].field} and {budget.field} bound the thinking differently: send only one of them.",
                param=budget.field,
            )
    return budgets[0] if budgets else None


def budget_tokens(budget: Budget | None, mode: ThinkingMode, max_tokens: int) -> int | None:
    """The bound in tokens, for a request that may generate `max_tokens`; None where the mode's own counts."""
    if budget is None:
        return None
    if isinstance(budget.value, int):
        return max_tokens if budget.value == UNBOUND else budget.value
    return int(getattr(mode.effort_shares, budget.value) * max_tokens)


def token_limit(
    asked: int | None, param: str, profile: ModeProfile, prompt_tokens: int, context: int, *, prompt: str = "messages"
) -> int:
    """The most tokens to generate, thinking included; `prompt` is the field that the prompt came in.

    Raises BadRequestError for `param` when the client asks for more than the mode allows, ContextLengthError when
    prompt and completion do not fit into the context.
    """
    left = context - prompt_tokens
    needed = 1 if asked is None else asked
    if asked is not None and asked > profile.max_tokens_limit:
        raise BadRequestError(
            f"{param} is {asked}, but this mode allows at most {profile.max_tokens_limit}.",
            param=param,
            code=CONTEXT_EXCEEDED if asked > left else None,
        )
    if needed > left:
        raise ContextLengthError(context, prompt_tokens, needed, prompt)
    return min(profile.default_max_tokens or profile.max_tokens_limit, left) if asked is None else asked


def plan_thinking(limit: int, budget: int | None, profile: ThinkingMode, ends: ThinkClosing) -> ThinkingPlan:
    """Divides `limit` tokens: thinking and wrap-up within the budget, the closing, and a reserve for the answer.

    Of the wrap-ups, the first that takes at most half of the budget is said. A limit that cannot hold the closing and
    one answer token is left to the thinking, as far as the budget allows.
    """
    budget = profile.thinking_budget if budget is None else budget
    separator = ends.separator
    closing = (*ends.tag, *separator)
    if limit <= len(closing):
        all_of_it = limit if budget is None else min(limit, budget)
        return ThinkingPlan(all_of_it, (), closing, "length", separator, trying=ends.trying)
    beside_closing = limit - len(closing)
    share = max(0, beside_closing - max(1, min(profile.answer_reserve, limit // SMALL_LIMIT_SHARE)))
    allowed = share if budget is None else min(budget, share)
    wrap_up = next((ids for ids in ends.wrap_ups if len(ids) <= allowed // 2), ())
    return ThinkingPlan(
        max_tokens=allowed - len(wrap_up),
        wrap_up=wrap_up,
        closing=closing,
        bound_by="length" if budget is None or share < budget else "budget",
        separator=separator,
        repetition=profile.repetition if profile.repetition.enabled else None,
        trying=ends.trying,
    )

"""What a request says about thinking, in whichever of the peers' dialects, as choices of a mode and one budget.

The dialects mix freely as long as they agree; `server.modes.resolve` and this file name the two fields that do not.
"""

from typing import NamedTuple

from server.api.chat.body import ChatRequest, Effort, ReasoningOptions, ThinkingOptions
from server.errors import BadRequestError
from server.modes.profile import ThinkingMode
from server.modes.resolve import ModeRequest


class Budget(NamedTuple):
    """`field` bounds the thinking, by a number of tokens or by an effort."""

    field: str
    value: int | Effort

    def tokens(self, profile: ThinkingMode, max_tokens: int) -> int:
        """The bound in tokens, for a request that may generate `max_tokens`."""
        if isinstance(self.value, int):
            return self.value
        return int(getattr(profile.effort_shares, self.value) * max_tokens)


class Wish(NamedTuple):
    """All that a request says about thinking. `is_shown`: whether the client wants to see it."""

    modes: list[ModeRequest | None]
    budget: Budget | None
    is_shown: bool


def thinking_wish(asked: ChatRequest) -> Wish:
    """Raises BadRequestError naming both fields where two bound the thinking differently."""
    reasoning = asked.reasoning or ReasoningOptions()
    thinking = asked.thinking
    kwargs = asked.chat_template_kwargs
    budgets = [
        _budget("thinking_token_budget", asked.thinking_token_budget),
        _budget("reasoning_effort", asked.reasoning_effort),
        _budget("reasoning.effort", reasoning.effort),
        _budget("reasoning.max_tokens", reasoning.max_tokens),
        _budget("thinking.budget_tokens", None if thinking is None else thinking.budget_tokens),
    ]
    modes = [
        None if asked.reasoning_mode is None else ModeRequest("reasoning_mode", asked.reasoning_mode),
        _of_effort("reasoning_effort", asked.reasoning_effort),
        _of_switch("reasoning.enabled", reasoning.enabled),
        _of_effort("reasoning.effort", reasoning.effort),
        _of_switch("reasoning.max_tokens", None if reasoning.max_tokens is None else True),
        *_of_thinking(thinking),
        _of_switch("chat_template_kwargs.enable_thinking", None if kwargs is None else kwargs.enable_thinking),
        _of_switch("chat_template_kwargs.thinking", None if kwargs is None else kwargs.thinking),
    ]
    return Wish(modes, _only_one(budgets), is_shown=not reasoning.exclude)


def _budget(field: str, value: int | Effort | None) -> Budget | None:
    return None if value in (None, "none") else Budget(field, value)


def _of_effort(field: str, effort: Effort | None) -> ModeRequest | None:
    return _of_switch(field, None if effort is None else effort != "none")


def _of_thinking(thinking: ThinkingOptions | None) -> list[ModeRequest | None]:
    if thinking is None:
        return []
    kind = _of_switch("thinking.type", thinking.type == "enabled")
    return [kind, _of_switch("thinking.budget_tokens", None if thinking.budget_tokens is None else True)]


def _of_switch(field: str, on: bool | None) -> ModeRequest | None:
    return None if on is None else ModeRequest(field, on)


def _only_one(budgets: list[Budget | None]) -> Budget | None:
    made = [budget for budget in budgets if budget is not None]
    for budget in made[1:]:
        if budget.value != made[0].value:
            raise BadRequestError(
                f"{made[0].field} and {budget.field} bound the thinking differently: send only one of them.",
                param=budget.field,
            )
    return made[0] if made else None

"""What admission makes of a request and `server.core.run` runs: a plan of one or several choices."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from chat_templates.think_end import ThinkEnd
from engine.messages import Sampling
from server.core.choice import Choice
from server.modes.limits import ThinkingPlan


@dataclass(frozen=True)
class AnswerFormat:
    """`grammar` is None where the answer is free. `calls`: whether tool calls may be in the answer, and in the
    thinking; `parallel`: whether more than one. `forbids_calls`: tools are described, but none may be called.
    """

    grammar: str | None = None
    calls: bool = False
    calls_in_thinking: bool = False
    parallel: bool = True
    forbids_calls: bool = False


@dataclass(frozen=True)
class ChoicePlan:
    """One choice of the response: what is generated after `prompt_ids`. `answer`: how, after the thinking."""

    prompt_ids: list[int]
    sampling: Sampling
    thinking: ThinkingPlan | None = None
    answer: Sampling | None = None

    def start(self, think_end: ThinkEnd) -> Choice:
        """The choice, not yet begun."""
        return Choice(self.prompt_ids, self.sampling, think_end, self.thinking, answer=self.answer)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request, ready to run. `created` in Unix seconds, `arrived` on the clock of perf_counter.

    `prompt_tokens` counts a prompt that several choices share once. `shows_thinking`: whether the response has the
    thinking, of which the mode may have none. `shows_token_ids`: whether it has the ids of prompt and completion.
    `is_conversation`: the answer may come back with the next request.
    """

    id: str
    arrived: float
    mode: str
    choices: tuple[ChoicePlan, ...]
    prompt_tokens: int
    stops: tuple[str, ...]
    priority: int
    is_conversation: bool
    shows_thinking: bool
    reasoning_logprobs: bool
    shows_token_ids: bool
    answer_format: AnswerFormat
    created: int = field(default_factory=lambda: int(time.time()))

    def cached_tokens(self, choices: Sequence[Choice]) -> int:
        """How many of `prompt_tokens` the engine found in its cache, by what the first choice of each prompt found."""
        firsts = [
            choice
            for index, choice in enumerate(choices)
            if index == 0 or self.choices[index].prompt_ids is not self.choices[index - 1].prompt_ids
        ]
        return sum(choice.cached_tokens or 0 for choice in firsts)

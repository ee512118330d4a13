"""What admission makes of a request and `server.core.run` runs: a job of one or several turns."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from chat_templates.think_end import ThinkEnd
from engine.messages import Sampling
from server.core.generate import Turn
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
class TurnPlan:
    """One choice of the response: what is generated after `prompt_ids`. `answer`: how, after the thinking."""

    prompt_ids: list[int]
    sampling: Sampling
    thinking: ThinkingPlan | None = None
    answer: Sampling | None = None

    def start(self, think_end: ThinkEnd) -> Turn:
        """The turn, not yet begun."""
        return Turn(self.prompt_ids, self.sampling, think_end, self.thinking, answer=self.answer)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request, ready to run. `created` in Unix seconds, `arrived` on the clock of perf_counter.

    `prompt_tokens` counts a prompt that several turns share once. `shows_thinking`: whether the response has the
    thinking, of which the mode may have none. `shows_token_ids`: whether it has the ids of prompt and completion.
    """

    id: str
    arrived: float
    mode: str
    turns: tuple[TurnPlan, ...]
    prompt_tokens: int
    stops: tuple[str, ...]
    priority: int
    shows_thinking: bool = False
    reasoning_logprobs: bool = False
    shows_token_ids: bool = False
    answer_format: AnswerFormat = field(default_factory=AnswerFormat)
    created: int = field(default_factory=lambda: int(time.time()))

    def cached_tokens(self, turns: Sequence[Turn]) -> int:
        """How many of `prompt_tokens` the engine found in its cache, by what the first turn of each prompt found."""
        firsts = [
            turn
            for index, turn in enumerate(turns)
            if index == 0 or self.turns[index].prompt_ids is not self.turns[index - 1].prompt_ids
        ]
        return sum(turn.cached_tokens or 0 for turn in firsts)


@dataclass(frozen=True, kw_only=True)
class CompletionJob(Job):
    """`echoes`: the prompt comes first in the text. Without `generates` it is all of it: the one token that the engine
    must generate to read a prompt is dropped.
    """

    echoes: bool
    generates: bool


def new_id(kind: str) -> str:
    """An id such as `chatcmpl-…`."""
    return f"{kind}-{secrets.token_hex(12)}"

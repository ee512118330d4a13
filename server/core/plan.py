"""What admission makes of a request and `server.core.run` runs: a plan of one or several choices."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.messages import Adapter, Sampling
from server.access.quota import ANYONE, Caller
from server.core.request import Stop
from server.modes.confidence import Signal
from server.modes.thinking import ThinkingPlan
from server.telemetry.record import RequestRecord


@dataclass(frozen=True)
class AnswerFormat:
    """`grammar` is None where the answer is free. `calls`: whether tool calls may be in the answer, and in the
    thinking; `parallel`: whether more than one. `forbids_calls`: tools are described, but none may be called.
    `is_named`: the client named the tool that is called. `banned`: tokens that the answer must not have. `tools`: the
    schemas of their arguments by name. `has_header`: the grammar begins with the header of a message, as in harmony.
    """

    grammar: str | None = None
    calls: bool = False
    calls_in_thinking: bool = False
    parallel: bool = True
    forbids_calls: bool = False
    is_named: bool = False
    banned: tuple[int, ...] = ()
    has_header: bool = False
    tools: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChoicePlan:
    """One choice of the response: what is generated after `prompt_ids`. `answer`: how, after the thinking. `mode`: by
    which mode, that does not choose. `draft`: what is drawn first, which may put another plan in the place of all this.
    """

    prompt_ids: list[int]
    sampling: Sampling
    thinking: ThinkingPlan | None = None
    answer: Sampling | None = None
    mode: str = ""
    draft: "Draft | Fork | None" = None

    @property
    def tries(self) -> bool:
        """Whether answers are tried along its thought."""
        return self.thinking is not None and self.thinking.trying is not None

    @property
    def most_tokens(self) -> int:
        """All that may be generated."""
        trying = None if self.thinking is None else self.thinking.trying
        most = self.sampling.max_tokens + (0 if trying is None else trying.rule.most_tokens)
        return most if self.draft is None else self.draft.most_tokens(most)

    @property
    def parts(self) -> tuple["ChoicePlan", ...]:
        """The draft, if there is one, and the rest."""
        return (self,) if self.draft is None else (self.draft.plan, self)

    @property
    def longest_prompt(self) -> int:
        """In tokens."""
        return max(len(part.prompt_ids) for part in self.parts)


@dataclass(frozen=True)
class Draft:
    """A choice begins as `plan` says. Once `tokens` are drawn, or it has ended, it stays so where the `signal` of these
    tokens is at least `threshold`.
    """

    plan: ChoicePlan
    tokens: int
    signal: Signal
    threshold: float

    def most_tokens(self, after: int) -> int:
        """All that may be generated, where it is so many `after` a draft that is dropped."""
        return max(self.plan.most_tokens, self.tokens + after)


@dataclass(frozen=True)
class Fork:
    """The model says by one token after `prompt_ids` whether it thinks: where that is not `thinks`, the choice is as
    `plan` says.
    """

    plan: ChoicePlan
    prompt_ids: list[int]
    sampling: Sampling
    thinks: int

    def most_tokens(self, after: int) -> int:
        """All that may be generated, where it is so many `after` a token that says so."""
        return 1 + max(self.plan.most_tokens, after)


class Queue(NamedTuple):
    """In what line choices wait for a place of the engine's: that of a mode, with a priority."""

    mode: str
    priority: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request of `caller` to `model`, by its listed name, ready to run. `adapter`: the LoRA adapter that is meant by
    that, if one is. `created` in Unix seconds; `record` is where its way is noted.

    `queues`: where its choices wait, the second for those whose draft was dropped. `tells_mode`: the response says by
    which mode each choice was answered, since the client did not.

    `prompt_tokens` counts a prompt that several choices share once. `shows_thinking`: whether the response has the
    thinking, of which the mode may have none. `shows_token_ids`: whether it has the ids of prompt and completion;
    `shows_control_tokens`: whether it spells those that say nothing; `logprobs_as_ids`: whether log-probabilities name
    tokens by their ids. `is_conversation`: the answer may come back with the next request, for the same `owner`
    (Request). `cache_salt`: of the engine's pages. `keeps_entries`: log-probabilities are kept until all is said.
    """

    id: str
    record: RequestRecord
    caller: Caller = ANYONE
    model: str
    adapter: Adapter | None = None
    mode: str
    choices: tuple[ChoicePlan, ...]
    prompt_tokens: int
    stop: Stop
    queues: tuple[Queue, ...]
    tells_mode: bool = False
    is_conversation: bool
    shows_thinking: bool
    reasoning_logprobs: bool
    shows_token_ids: bool
    shows_control_tokens: bool = False
    logprobs_as_ids: bool = False
    answer_format: AnswerFormat
    owner: tuple[str, str, int] = ("", "", 0)
    cache_salt: str = ""
    keeps_entries: bool = True
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def top_logprobs(self) -> int:
        """How many likeliest tokens stand beside each, in prompt and answer."""
        sampling = self.choices[0].sampling
        return sampling.logprobs or sampling.prompt_logprobs or 0

    @property
    def most_tokens(self) -> int:
        """What it may come to: the prompt, and all that its choices may generate."""
        return self.prompt_tokens + sum(choice.most_tokens for choice in self.choices)

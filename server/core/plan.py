"""What admission makes of a request and `server.core.run` runs: a plan of one or several choices."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.messages import Sampling
from server.access.quota import ANYONE, Caller
from server.core.request import Stop
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
    """One choice of the response: what is generated after `prompt_ids`. `answer`: how, after the thinking."""

    prompt_ids: list[int]
    sampling: Sampling
    thinking: ThinkingPlan | None = None
    answer: Sampling | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request of `caller`, ready to run. `created` in Unix seconds; `record` is where its way is noted.

    `prompt_tokens` counts a prompt that several choices share once. `shows_thinking`: whether the response has the
    thinking, of which the mode may have none. `shows_token_ids`: whether it has the ids of prompt and completion;
    `shows_control_tokens`: whether it spells those that say nothing; `logprobs_as_ids`: whether log-probabilities name
    tokens by their ids. `is_conversation`: the answer may come back with the next request, for the same `owner`
    (Request). `cache_salt`: of the engine's pages.
    """

    id: str
    record: RequestRecord
    caller: Caller = ANYONE
    mode: str
    choices: tuple[ChoicePlan, ...]
    prompt_tokens: int
    stop: Stop
    priority: int
    is_conversation: bool
    shows_thinking: bool
    reasoning_logprobs: bool
    shows_token_ids: bool
    shows_control_tokens: bool = False
    logprobs_as_ids: bool = False
    answer_format: AnswerFormat
    owner: tuple[str, str] = ("", "")
    cache_salt: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def most_tokens(self) -> int:
        """What it may come to: the prompt, and all that its choices may generate."""
        return self.prompt_tokens + sum(choice.sampling.max_tokens for choice in self.choices)

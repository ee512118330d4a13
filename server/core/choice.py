"""One choice of an answer over token ids: thinking up to its limit, then the answer, in one generation or two.

A choice starts as one generation. A second one, over the same pages of the cache, follows where the thinking has to be
closed for the model (its tokens are spent, it goes round in circles, its answer is known, it was told to end, or it
ended its turn while thinking), or where the answer is drawn differently from the thinking (a client's stop tokens,
least length and grammar bind the answer only).
What follows thinking whose tokens are spent is known before, so the engine is told with the first, and goes on to it
in its next step; where the end tag is ordinary text, and for all else, the second has to be asked for.
Knows no text, no engine: `server.core.generate` has the generations run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import msgspec

from chat_templates.think_again import ThinkAgain
from chat_templates.think_end import ThinkEnd
from engine.messages import Continuation, Delta, Sampling, TokenLogprob
from server.core.repetition import RepetitionWatch
from server.core.trials import Trials
from server.modes.confidence import likeliest_needed
from server.modes.thinking import ThinkingPlan

Finish = Literal["stop", "length"]
ThinkingFinish = Literal["natural", "budget", "repetition", "confident", "length", "stopped"]


@dataclass(frozen=True)
class Advance:
    """What a delta of the engine adds to the choice.

    `token_ids` are for the parser: what the model wrote, end tag included, without stop tokens, without what was said
    for it. `opened`: after how many of them thinking opens in the answer. `closed`: the thinking was closed for the
    model after these tokens. `logprobs`: empty, or one entry for each of the tokens that the model wrote.
    """

    token_ids: list[int]
    closed: bool = False
    opened: tuple[int, ...] = ()
    logprobs: Sequence[TokenLogprob] = ()


class Generation(NamedTuple):
    """What the engine has to run; `then` takes its place where the thinking in it spends its tokens. `held_tokens`: as
    in the engine's Generate.
    """

    prompt_ids: list[int]
    sampling: Sampling
    then: Continuation | None = None
    held_tokens: int = 0


class Choice:
    """The state of one choice, moved on by the engine's deltas; `generation` is what it has to run.

    `thinking` tells whether the model thinks now. `stop_reason` is the stop string that ended the choice, if one did.

    `token_ids` are all that count as generated: what the model wrote, its stop tokens too, and what was said for it.
    The sampling's `max_tokens` bounds them, a ThinkingPlan the thinking in them (`reasoning_tokens`, without the end
    tag). Not a token more than the plan allows is kept, whatever the engine's deltas bring. `answer` is how the answer
    is drawn where it is not as the thinking; limits and what binds the answer only are the same in both. A thinking
    that opens again in the answer, as `think_again` sees, is bound by what is left of the same limit; where none was
    planned, by the token limit alone.

    `is_direct`: whether its plan, or that of its draft, has no thinking. `opens_thinking`: whether it began with it.
    `mode`: the name of the mode that it is in. `asked_ids`: the prompt by which choices belong together.

    Of those that begin as a draft, which `server.core.drafted` has: `drafting` until it is known what becomes of it,
    `is_dropped` once it is no part of the answer, and then `draft_tokens` counts its tokens, and `found_again` those of
    the prompt that had not to be computed again. `trials`: answers tried along its thought, if any.
    """

    drafting = False
    is_dropped = False
    draft_tokens = 0
    found_again: int | None = None
    trials: Trials | None = None

    def __init__(
        self,
        prompt_ids: list[int],
        sampling: Sampling,
        think_end: ThinkEnd,
        thinking: ThinkingPlan | None = None,
        *,
        answer: Sampling | None = None,
        think_again: ThinkAgain | None = None,
    ) -> None:
        self.cached_tokens: int | None = None
        self.prompt_logprobs: list[TokenLogprob | None] | None = None
        self.token_ids: list[int] = []
        self.reasoning_tokens = 0
        self.mode = ""
        self.finish: Finish | None = None
        self.stop_reason: str | int | None = None
        """The client's stop string or stop token that ended the answer."""
        self.thinking_finish: ThinkingFinish | None = None
        self.asked_ids = prompt_ids
        self._think_end = think_end
        self._told_to_end = False
        self._begin(prompt_ids, sampling, answer or sampling, thinking, think_again)

    def _begin(
        self,
        prompt_ids: list[int],
        sampling: Sampling,
        answer: Sampling,
        thinking: ThinkingPlan | None,
        think_again: ThinkAgain | None,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.thinking = thinking is not None
        self._sampling = sampling
        self._answer_sampling = answer
        self._plan = thinking
        if thinking is None and think_again is not None:
            self._plan = ThinkingPlan(sampling.max_tokens, (), think_again.closing, "length")
        self._think_again = think_again
        self._answer_from = 0  # how many tokens were generated when the answer began
        self._has_wrapped_up = False
        rule = thinking.repetition if thinking is not None else None
        self._repetition = None if rule is None else RepetitionWatch(rule)
        trying = thinking.trying if thinking is not None else None
        if trying is not None:
            self.trials = Trials(trying.rule, trying.detokenizer())
        self.generation = Generation(prompt_ids, answer)
        if thinking is not None and thinking.max_tokens > 0:
            self._start_thinking(thinking)
        elif thinking is not None:
            self._close(thinking, thinking.bound_by)
        self.is_direct = thinking is None
        self.opens_thinking = self.thinking

    @property
    def sampling(self) -> Sampling:
        """How it is drawn, its answer apart where that is drawn differently."""
        return self._sampling

    @property
    def completion_tokens(self) -> int:
        """How many tokens count as generated."""
        return len(self.token_ids)

    @property
    def trial_tokens(self) -> int:
        """How many tokens trials have drawn; they count as nothing else."""
        return 0 if self.trials is None else self.trials.tokens

    def trial(self, at: int) -> Generation | None:
        """What would answer, greedily, had the thinking been closed after so many of the tokens; None where there is no
        room for it.
        """
        plan, answer = self._plan, self._answer_sampling
        assert plan is not None
        assert plan.trying is not None
        rule = plan.trying.rule
        said = (*self._last_words(plan), *(plan.trying.lead if answer.grammar is None else ()))
        most = min(rule.answer_tokens, self._sampling.max_tokens - at - len(said))
        if most < 1:
            return None
        sampling = msgspec.structs.replace(
            answer, max_tokens=most, min_tokens=0, temperature=0.0, seed=None,
            logprobs=likeliest_needed(rule.signal), prompt_logprobs=None,
        )  # fmt: skip
        return Generation([*self.prompt_ids, *self.token_ids[:at], *said], sampling)

    def draft(self, delta: Delta) -> Sequence[Delta]:
        """What is to be fed of the next tokens: while a choice is `drafting`, it may hold them."""
        return (delta,)

    def feed(self, delta: Delta) -> Advance:
        """Takes the next tokens; afterwards `generation` may have changed and `finish` may be set."""
        if delta.cached_tokens is not None and self.cached_tokens is None:
            self.cached_tokens = delta.cached_tokens
            if (
                delta.prompt_logprobs is not None
            ):  # where thinking is closed at once, the closing is in the engine's prompt
                self.prompt_logprobs = delta.prompt_logprobs[: len(self.prompt_ids)]
        ids = delta.token_ids if delta.stop_token_id is None else delta.token_ids[:-1]
        if self.thinking:
            assert self._plan is not None
            advance = self._think(ids, delta, self._plan)
        else:
            advance = self._answer(ids, delta)
        if delta.logprobs is None:
            return advance
        return replace(advance, logprobs=delta.logprobs[: len(advance.token_ids)])

    def stop(self, reason: str | None = None) -> None:
        """Ends the choice after the tokens fed so far; `reason`: the stop string that they reached."""
        self.finish = "stop"
        self.stop_reason = reason

    @property
    def can_set_back(self) -> bool:
        """Whether the generation may be broken off and gone on with, every token being as likely as without that."""
        return not _has_state(self.generation.sampling)

    @property
    def can_pause(self) -> bool:
        """The same, also where more of the generation came than was fed."""
        then = self.generation.then
        return self.can_set_back and (then is None or not _has_state(then.sampling))

    def set_back(self) -> None:
        """Has the generation go on, as another one, from the tokens so far."""
        if self.finish is not None:
            return
        if self.thinking:
            assert self._plan is not None
            if self._room(self._plan) < 0:
                self._close(self._plan, self._plan.bound_by)
            else:
                self._start_thinking(self._plan)
        else:
            self._start_answer()

    def end_thinking(self) -> bool:
        """Closes the thinking for the model after the next tokens; whether there is any to close."""
        if not self.thinking or self.finish is not None or self._told_to_end:
            return False
        self._told_to_end = True
        return True

    def _think(self, ids: list[int], delta: Delta, plan: ThinkingPlan) -> Advance:
        if delta.stop_token_id is not None and delta.stop_token_id == self._think_end.token_id:
            ids = [*ids, delta.stop_token_id]
        end, tag_tokens = self._find_end(ids)
        room, how = self._room_now(plan)
        thought = ids[: min(end, room)]
        looped = self._repetition.feed(thought) if self._repetition is not None and end <= room else None
        thought = thought[:looped]
        self.token_ids += thought
        self.reasoning_tokens += len(thought)
        if end > room:
            return self._close_after(thought, plan, how)
        if looped is not None:
            return self._close_after(thought, plan, "repetition")
        if end < len(ids):
            self.reasoning_tokens -= tag_tokens - 1
            return _after(thought, self._end_naturally(ids[end:], delta))
        if delta.finish == "stop" or self._told_to_end:
            return self._close_after(thought, plan, "stopped")
        if delta.finish == "length":
            # Only a limit too small for closing and answer ends here; else one token more than the plan is awaited.
            self.thinking_finish, self.finish = "length", "length"
        return Advance(thought)

    def _find_end(self, ids: list[int]) -> tuple[int, int]:
        """Where in `ids` the token is that completes the end tag, and how many tokens the tag took in all."""
        for index, token_id in enumerate(ids):
            tag_tokens = self._think_end.feed(token_id)
            if tag_tokens:
                return index, tag_tokens
        return len(ids), 0

    def _end_naturally(self, rest: list[int], delta: Delta) -> Advance:
        """The model wrote the end tag: `rest` begins with its last token; the answer goes on in this generation or the
        next.
        """
        self.thinking = False
        self.thinking_finish = "natural"
        if self.trials is not None:
            self.trials.stop()
        self._answer_from = len(self.token_ids) + 1
        if self._is_drawn_alike():
            return self._answer(rest, delta)
        assert self._plan is not None
        rest = rest[:1]
        if self._sampling.grammar is not None and self._think_end.is_exact():
            # What follows the end tag in the template has no place in a grammar.
            rest = [*rest, *self._plan.separator][: self._sampling.max_tokens - len(self.token_ids)]
        self.token_ids += rest
        self._start_answer()
        return Advance(rest)

    def _answer(self, ids: list[int], delta: Delta) -> Advance:
        watch = self._think_again
        again = None if watch is None else watch.find(self.token_ids, self._answer_from, ids)
        if again is not None:
            assert self._plan is not None
            self.token_ids += ids[:again]
            self.thinking, self.thinking_finish = True, None
            advance = self._think(ids[again:], delta, self._plan)
            return _after(ids[:again], replace(advance, opened=(0, *advance.opened)))
        self.token_ids += ids
        if delta.stop_token_id is not None:
            self.token_ids.append(delta.stop_token_id)
            if delta.stop_token_id in self._sampling.stop_token_ids:
                self.stop_reason = delta.stop_token_id
        if delta.finish is not None:
            self.finish = "length" if delta.finish == "length" else "stop"
        return Advance(ids)

    def _last_words(self, plan: ThinkingPlan) -> tuple[int, ...]:
        """What is said to end a thinking. Only the first is wrapped up: the budget has no tokens for more."""
        return plan.closing if self._has_wrapped_up else (*plan.wrap_up, *plan.closing)

    def _room(self, plan: ThinkingPlan) -> int:
        """How many more tokens of thinking there may be."""
        generated = len(self.token_ids)
        if plan.bound_by == "length":
            return plan.max_tokens - generated
        said = len(self._last_words(plan))
        return min(plan.max_tokens - self.reasoning_tokens, self._sampling.max_tokens - generated - said - 1)

    def _room_now(self, plan: ThinkingPlan) -> tuple[int, ThinkingFinish]:
        """How many more tokens of thinking are kept, and why no more are."""
        room = max(0, self._room(plan))  # an answer before another thought may have taken more
        ends_at = None if self.trials is None else self.trials.ends_at
        if ends_at is not None and ends_at - len(self.token_ids) < room:
            return max(0, ends_at - len(self.token_ids)), "confident"
        return room, plan.bound_by

    def _close_after(self, thought: list[int], plan: ThinkingPlan, how: ThinkingFinish) -> Advance:
        self._close(plan, how)
        return Advance(thought, closed=True)

    def _close(self, plan: ThinkingPlan, how: ThinkingFinish) -> None:
        """Ends the thinking for the model: says the wrap-up and the closing, and has the answer generated."""
        self.thinking = False
        self.thinking_finish = how
        if self.trials is not None:
            self.trials.stop()
        said = self._last_words(plan)
        if len(self.token_ids) + len(said) >= self._sampling.max_tokens:
            self.finish = "length"
            return
        self.token_ids += said
        self.reasoning_tokens += len(said) - len(plan.closing)
        self._has_wrapped_up = True
        self._answer_from = len(self.token_ids)
        self._start_answer()

    def _start_thinking(self, plan: ThinkingPlan) -> None:
        """Has the thinking generated, or the rest of it."""
        sampling = self._thinking_sampling(plan)
        self.generation = Generation([*self.prompt_ids, *self.token_ids], sampling, self._continuation(plan))

    def _start_answer(self) -> None:
        if len(self.token_ids) == self._sampling.max_tokens:
            self.finish = "length"
            return
        self.generation = Generation(
            [*self.prompt_ids, *self.token_ids], self._sampling_of_answer_after(len(self.token_ids))
        )

    def _sampling_of_answer_after(self, generated: int) -> Sampling:
        left = self._sampling.max_tokens - generated
        least = max(0, self._sampling.min_tokens - generated)
        return msgspec.structs.replace(self._answer_sampling, max_tokens=left, min_tokens=least)

    def _continuation(self, plan: ThinkingPlan) -> Continuation | None:
        """What `_close` will have generated once the plan's tokens are spent; None where only that can tell."""
        end, room = self._think_end.token_id, self._room(plan)
        said = self._last_words(plan)
        generated = len(self.token_ids) + room + len(said)
        if end is None or generated >= self._sampling.max_tokens:
            return None
        return Continuation(room, end, said, self._sampling_of_answer_after(generated))

    def _thinking_sampling(self, plan: ThinkingPlan) -> Sampling:
        """One generation for all where thinking and answer are drawn alike, else one that ends with the end tag: by the
        engine's hand if that is a token, else by ours.
        """
        own = self._sampling
        left = own.max_tokens - len(self.token_ids)
        if self._is_drawn_alike():
            return msgspec.structs.replace(own, max_tokens=left) if self.token_ids else own
        most = min(self._room(plan) + 1, left)
        end = self._think_end.token_id
        stops = () if end is None else (end,)
        return msgspec.structs.replace(own, max_tokens=most, min_tokens=0, stop_token_ids=stops, grammar=None)

    def _is_drawn_alike(self) -> bool:
        """Whether one generation serves for thinking and answer."""
        own = self._sampling
        binds = own.stop_token_ids or own.min_tokens or own.grammar is not None
        return not binds and own == self._answer_sampling


def _after(ids: list[int], advance: Advance) -> Advance:
    """The advance with ids before it."""
    opened = tuple(len(ids) + index for index in advance.opened)
    return replace(advance, token_ids=[*ids, *advance.token_ids], opened=opened)


def _has_state(sampling: Sampling) -> bool:
    """Whether a generation depends on more of its past than the tokens, or tells of it."""
    counts_tokens = sampling.presence_penalty or sampling.frequency_penalty
    is_seeded = sampling.seed is not None and sampling.temperature > 0
    return bool(counts_tokens or is_seeded or sampling.grammar is not None or sampling.prompt_logprobs is not None)


def cached_tokens(choices: Sequence[Choice]) -> int:
    """How many prompt tokens the engine found in its cache, of each prompt by what its first choice found."""
    return sum(choice.cached_tokens or 0 for choice in _firsts(choices))


def prompt_tokens(choices: Sequence[Choice]) -> int:
    """How many tokens the prompts have, each counted once, as its first choice has it."""
    return sum(len(choice.prompt_ids) for choice in _firsts(choices))


def _firsts(choices: Sequence[Choice]) -> Iterator[Choice]:
    """The first choice of each prompt."""
    for index, choice in enumerate(choices):
        if index == 0 or choice.asked_ids is not choices[index - 1].asked_ids:
            yield choice

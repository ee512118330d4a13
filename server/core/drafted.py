"""A choice that begins as a draft of a mode that answers at once, and thinks if the model was not sure of that.

The draft is one generation, with log-probabilities. Its tokens are held until so many are there, or it has ended. If
the model was sure of them, they are fed as they would have been, and the generation goes on: nothing is computed
twice. If not, they are dropped, and the thinking begins over the same pages, as a choice of its own mode would. That is
done as soon as no further tokens can change it.

Of a model that chooses itself the draft is one token, a tag, after which the choice goes on by the plan that it says.
"""

from collections.abc import Sequence

import msgspec

from chat_templates.think_again import ThinkAgain
from chat_templates.think_end import ThinkEnd
from engine.messages import Delta, Sampling, TokenLogprob
from server.core.choice import Advance, Choice, Generation
from server.core.plan import ChoicePlan, Draft, Fork
from server.modes.confidence import ROUNDING, confidence, likeliest_needed, most_confidence


class EitherChoice(Choice):
    """A choice that goes by one of two plans, as is known once its first tokens are: by that of its draft, or by the
    one `after` it.
    """

    def __init__(
        self,
        draft: ChoicePlan,
        after: ChoicePlan,
        begins: Generation,
        think_end: ThinkEnd,
        *,
        answer: Sampling | None = None,
        think_again: ThinkAgain | None = None,
    ) -> None:
        super().__init__(begins.prompt_ids, begins.sampling, think_end, answer=answer, think_again=think_again)
        self.asked_ids = after.prompt_ids
        self.drafting = True
        self._of_draft = draft
        self._after = after
        self._begun_anew = False
        self._cached_at_first: int | None = None

    @property
    def plan(self) -> ChoicePlan:
        """By which it is read."""
        return self._after if self.is_dropped else self._of_draft

    def feed(self, delta: Delta) -> Advance:
        """As any choice, once it is known what it is."""
        advance = super().feed(delta)
        if self._begun_anew and self.found_again is None and self.cached_tokens is not None:
            self.found_again, self.cached_tokens = self.cached_tokens, self._cached_at_first or 0
        return advance

    def end_thinking(self) -> bool:
        """A draft that is told to, is the answer."""
        if not self.drafting:
            return super().end_thinking()
        tells = self.finish is None and not self._told_to_end
        self._told_to_end = True
        return tells

    def _begin_anew(self, plan: ChoicePlan, think_again: ThinkAgain | None, cached_tokens: int | None) -> None:
        """Goes on by a plan of its own; the tokens so far are no part of it."""
        self._begun_anew, self._cached_at_first, self.mode = True, cached_tokens, plan.mode
        self._begin(plan.prompt_ids, plan.sampling, plan.answer or plan.sampling, plan.thinking, think_again)


class ForkedChoice(EitherChoice):
    """The choice of a `plan` that begins with the model's tag, of a `fork`, which says whether it thinks. `think_again`
    watches what follows.
    """

    def __init__(self, plan: ChoicePlan, fork: Fork, think_end: ThinkEnd, think_again: ThinkAgain | None) -> None:
        super().__init__(fork.plan, plan, Generation(fork.prompt_ids, fork.sampling), think_end)
        self._thinks = fork.thinks
        self._think_again_then = think_again

    def draft(self, delta: Delta) -> Sequence[Delta]:
        """Nothing; afterwards `generation` is another."""
        self.drafting = False
        self.draft_tokens = len(delta.token_ids)
        self.is_dropped = self._thinks in delta.token_ids and not self._told_to_end
        self._told_to_end = False
        self._begin_anew(self.plan, self._think_again_then, delta.cached_tokens)
        return ()


class DraftedChoice(EitherChoice):
    """The choice of a `plan` with a draft. `think_again` watches the draft's answer, `think_again_then` what follows a
    draft that was dropped.
    """

    def __init__(
        self,
        plan: ChoicePlan,
        draft: Draft,
        think_end: ThinkEnd,
        think_again: ThinkAgain | None,
        think_again_then: ThinkAgain | None,
    ) -> None:
        one = draft.plan
        top = likeliest_needed(draft.signal)
        super().__init__(
            one,
            plan,
            Generation(one.prompt_ids, _told(one.sampling, top)),
            think_end,
            answer=_told(one.answer or one.sampling, top),
            think_again=think_again,
        )
        self.generation = self.generation._replace(held_tokens=draft.tokens)
        self._rule = draft
        self._think_again_then = think_again_then
        self._held: list[Delta] = []
        self._entries: list[TokenLogprob] = []

    def draft(self, delta: Delta) -> Sequence[Delta]:
        """Nothing while the draft goes on, and all of it where it is kept; afterwards `generation` may have changed."""
        self._held.append(delta)
        self._entries += (delta.logprobs or [])[: len(delta.token_ids) - (delta.stop_token_id is not None)]
        self.draft_tokens += len(delta.token_ids)
        may_go_on = self.draft_tokens < self._rule.tokens and delta.finish is None and not self._told_to_end
        if may_go_on and not self._is_lost():
            return ()
        self.drafting = False
        held, self._held = self._held, []
        if self._told_to_end or self._is_sure():
            self._told_to_end = False
            self.mode, self.draft_tokens = self._rule.plan.mode, 0
            return held
        self.is_dropped = True
        self._begin_anew(self._after, self._think_again_then, held[0].cached_tokens)
        return ()

    def set_back(self) -> None:
        """A draft goes on from the tokens that are held."""
        if not self.drafting or self.finish is not None:
            super().set_back()
            return
        drawn = [token_id for delta in self._held for token_id in delta.token_ids]
        sampling = self._sampling_of_answer_after(len(drawn))
        held_tokens = self._rule.tokens - len(drawn)
        self.generation = Generation([*self.prompt_ids, *drawn], sampling, held_tokens=held_tokens)

    def _is_lost(self) -> bool:
        """Whether no tokens that may follow would make the model sure of them all."""
        rule = self._rule
        if not self._entries:
            return False
        return most_confidence(rule.signal, self._entries, rule.tokens) < rule.threshold - ROUNDING

    def _is_sure(self) -> bool:
        """By the tokens that a client would be told the log-probabilities of; by none, it is not."""
        rule = self._rule
        entries = self._entries[: rule.tokens]
        return bool(entries) and confidence(rule.signal, entries) >= rule.threshold


def _told(sampling: Sampling, top: int) -> Sampling:
    """With the log-probabilities that the decision needs; more of them than the client asked for are not shown."""
    return msgspec.structs.replace(sampling, logprobs=max(top, sampling.logprobs or 0))

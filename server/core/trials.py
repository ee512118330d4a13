"""Answers that are tried along a thought: where, what came of them, and where the thought ends therefore.

The thought is never kept waiting in the engine. Only a few of its tokens are shown later: so many as a trial has drawn,
and HEAD_START, may be ahead of the point that it began at. Therefore it is the trial's tokens alone, not how fast they
come, that say where the thought ends. Knows neither engine nor chat.
"""

import re
from collections import deque
from collections.abc import Sequence

from chat_templates.detokenizer import Detokenizer
from engine.messages import Delta, TokenLogprob
from server.modes.confidence import confidence
from server.modes.early_end import EarlyEnd

HEAD_START = 4
"""Tokens that the thought goes on by before a trial has drawn its first."""
PARAGRAPH = "\n\n"


class Points:
    """Reads the tokens of a thought, and finds where an answer is to be tried."""

    def __init__(self, rule: EarlyEnd, detokenizer: Detokenizer) -> None:
        marks = [*((re.escape(PARAGRAPH),) if rule.paragraphs else ())]
        marks += [rf"(?<!\w){re.escape(word)}" for word in rule.words]
        self._every = rule.every
        self._apart = rule.apart
        self._marks = re.compile("|".join(marks)) if marks else None
        self._longest = max(map(len, (PARAGRAPH, *rule.words)))
        self._detokenizer = detokenizer
        self._since = 0
        self._texts: deque[str] = deque()  # of the last tokens

    def feed(self, token_id: int) -> int | None:
        """None, or there is a point: so many tokens before the end of what was read, 0 being after this token."""
        self._since += 1
        back = self._look(token_id) if self._marks is not None else None
        if back is None and self._since == self._every:
            back = 0
        if back is None or self._since < self._apart:
            return None
        self._since = 0
        return back

    def _look(self, token_id: int) -> int | None:
        """A paragraph ends after the token with its end; a word begins before the token with its beginning."""
        assert self._marks is not None
        new = self._detokenizer.feed([token_id])
        self._texts.append(new)
        text = "".join(self._texts)
        back = None
        for found in self._marks.finditer(text):
            if found.end() > len(text) - len(new):
                back = 0 if found[0] == PARAGRAPH else self._tokens_from(found.start())
        while len(text) - len(self._texts[0]) > self._longest:
            text = text[len(self._texts.popleft()) :]
        return back

    def _tokens_from(self, place: int) -> int:
        """How many of the last tokens there are from the one on that holds this place of their text, or begins it."""
        first = 0
        for number, text in enumerate(self._texts):
            if place < len(text):
                break
            place -= len(text)
            first = number + 1 if text else first  # before a character's last token stand some without a text
        return len(self._texts) - first


class Trials:
    """Those of the first thought of one choice, until that `is_over`. `tokens`: what they have drawn. `ends_at`: when
    so many tokens are generated, the thinking is to be closed.
    """

    def __init__(self, rule: EarlyEnd, detokenizer: Detokenizer) -> None:
        self.tokens = 0
        self.is_over = False
        self.ends_at: int | None = None
        self._rule = rule
        self._points = Points(rule, detokenizer)
        self._left = rule.most_trials
        self._answers: deque[tuple[tuple[int, ...], float]] = deque(maxlen=rule.agreeing)
        self._free_from = 0
        self._began: int | None = None
        self._forget()

    def stop(self) -> None:
        """The thought has ended."""
        self.is_over, self.ends_at = True, None

    def take(self, ids: Sequence[int], generated: int) -> tuple[int, int | None]:
        """How many of the thought's next tokens may be shown now, where so many are generated already; and if there is
        to be a trial then, after how many of the generated tokens. (0, None): first a trial has to tell more.
        """
        if self.ends_at is not None:
            return min(len(ids), self.ends_at + 1 - generated), None  # which one too many tells
        if self._began is not None:
            ahead = self._began + self._drawn + HEAD_START - generated
            for token_id in ids[:ahead]:
                self._points.feed(token_id)
            return min(len(ids), ahead), None
        if self._left:
            for number, token_id in enumerate(ids, 1):
                back = self._points.feed(token_id)
                if back is not None and generated + number > self._free_from:
                    return number, generated + number - back
        return len(ids), None

    def begin(self, generated: int) -> None:
        """A trial begins while so many tokens are generated."""
        self._began, self._left = generated, self._left - 1

    def drew(self, delta: Delta) -> None:
        """The trial's next tokens."""
        self.tokens += len(delta.token_ids)
        self._drawn += len(delta.token_ids)
        written = len(delta.token_ids) - (delta.stop_token_id is not None)
        self._ids += delta.token_ids[:written]
        self._entries += (delta.logprobs or [])[:written]

    def conclude(self) -> None:
        """The trial has ended."""
        if self.is_over:
            return
        assert self._began is not None
        rule, entries = self._rule, self._entries
        self._free_from = self._began + self._drawn + HEAD_START
        if entries:
            self._answers.append((tuple(self._ids), confidence(rule.signal, entries)))
        else:
            self._answers.clear()
        alike = {ids for ids, _ in self._answers}
        is_sure = all(signal >= rule.threshold for _, signal in self._answers)
        if len(self._answers) == rule.agreeing and len(alike) == 1 and is_sure:
            self.ends_at = self._free_from
        self._forget()

    def give_up(self, *, for_good: bool = False) -> None:
        """The trial is broken off, and says nothing; `for_good`: no other follows."""
        self._left = 0 if for_good else self._left
        self._forget()

    def _forget(self) -> None:
        self._began = None
        self._drawn = 0
        self._ids: list[int] = []
        self._entries: list[TokenLogprob] = []

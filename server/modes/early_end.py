"""When a thought is long enough, by answers that are tried along its way: data of a thinking mode.

`server.core.trials` applies it (DEER, arXiv 2504.15895; Dynasor, arXiv 2412.20993).
"""

from typing import Annotated

import msgspec

from server.modes.confidence import Signal

Spacing = Annotated[int, msgspec.Meta(ge=1, le=65536)]


class EarlyEnd(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At some points of a thought an answer is tried beside it. The thinking is closed once the last `agreeing` of them
    are the same, and the `signal` of each is at least `threshold`.

    A point is `every` so many tokens after the last one (None: nowhere), the end of a paragraph (`paragraphs`), and
    before each of `words`, but never less than `apart` tokens after the last one. A trial is greedy and has at most
    `answer_tokens`; `lead` is said for the model before it. A thought has `most_trials` at most. `calibrated_for`: the
    model that the threshold was measured on.
    """

    every: Spacing | None = None
    paragraphs: bool = False
    words: tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=64)], ...] = ()
    apart: Spacing = 16
    answer_tokens: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    most_trials: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 32
    agreeing: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    signal: Signal = "sum"
    threshold: Annotated[float, msgspec.Meta(le=0.0)]
    lead: str = ""
    calibrated_for: str = ""

    def __post_init__(self) -> None:
        if self.every is None and not self.paragraphs and not self.words:
            raise ValueError("it names no point at which to try: every, paragraphs or words")
        if self.every is not None and self.every < self.apart:
            raise ValueError(f"every is {self.every}, which must not be below apart, {self.apart}")
        if any(word != word.strip() for word in self.words):
            raise ValueError("words must neither begin nor end with a blank")
        if self.agreeing > self.most_trials:
            raise ValueError(f"agreeing is {self.agreeing}, which must not be above most_trials, {self.most_trials}")

    @property
    def most_tokens(self) -> int:
        """What all trials of a thought may draw."""
        return self.most_trials * self.answer_tokens

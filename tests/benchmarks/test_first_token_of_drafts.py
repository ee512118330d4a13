"""What is told of the first tokens of drafts, from answers that are made up."""

import pytest

from benchmarks.first_token_of_drafts import Answer, figures
from server.cli_errors import UsageError

DIRECT = [Answer(0.01, 6, "standard"), Answer(0.02, 6, "standard"), Answer(0.04, 6, "standard")]


def test_only_questions_count_whose_draft_was_kept() -> None:
    drafted = [Answer(0.02, 6, "standard"), Answer(0.9, 90, "reasoning"), Answer(0.04, 8, "standard")]
    found = figures("auto", "standard", DIRECT, drafted)
    assert (found.kept, found.asked, found.tokens) == (2, 3, 7)
    assert (found.direct, found.auto, found.times_as_late) == pytest.approx((0.025, 0.03, 1.5))


def test_without_a_kept_draft_there_is_nothing_to_tell() -> None:
    with pytest.raises(UsageError, match="mode auto kept no draft of 3"):
        figures("auto", "standard", DIRECT, [Answer(0.9, 90, "reasoning")] * 3)

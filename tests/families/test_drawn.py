"""Every family's checks without a model: whatever is drawn, within the grammar where there is one."""

from pathlib import Path

import pytest

from tests.families.checkpoints import FAMILIES
from tests.families.checks import CHECKS
from tests.families.drawn import asked_without_model

OF_PAGES = "pages are kept"
"""The check that needs an engine."""
OF_BUDGETS = "budgets are exact"
"""Where thinking opens again at the very end, what is left may be too little to close it, and is not drawn."""


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("seed", "likes_to_think"), [(0, False), (1, False), (2, False), (3, False), (1, True)])
def test_whatever_is_drawn(name: str, seed: int, likes_to_think: bool, tmp_path: Path) -> None:
    with asked_without_model(name, tmp_path, seed, likes_to_think=likes_to_think) as asking:
        for title, check in CHECKS.items():
            if title != OF_PAGES and not (likes_to_think and title == OF_BUDGETS):
                check(asking)

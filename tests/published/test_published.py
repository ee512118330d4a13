"""The published templates come out as `results.json` says, where they were fetched."""

import hashlib
import json

import pytest

from tests.published.__main__ import RESULTS
from tests.published.compare import REASONS, Compared
from tests.published.templates import PUBLISHED, Published

FOUND = json.loads(RESULTS.read_text())["templates"]
BY_FILE = {published.file: published for published in PUBLISHED}
NOT_READ = ("general", "solar_open")
"""Profiles of models whose form of calls the server does not know, or finds in the template."""


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.file)
def test_what_was_found(published: Published) -> None:
    """Where a rendering differs it is known why, and the profile is the one that is meant."""
    found = FOUND[published.file]
    assert found["profile"] == published.profile
    assert found["equal"] == found["renderings"] or found["different"]
    assert found["calls come back"] is not False or published.profile in NOT_READ
    assert all(any(why.endswith(reason) for reason in REASONS.values()) for why in found["different"])


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.file)
def test_it_is_still_so(published: Published) -> None:
    if not published.path.is_file():
        pytest.skip("not here: python -m tests.published.fetch")
    digest = hashlib.sha256(published.path.read_bytes()).hexdigest()
    assert FOUND[published.file] == {"sha256": digest, **Compared(published).outcome()}

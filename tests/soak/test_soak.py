"""The soak in its short form: two faults, then a quiet round."""

import pytest

from tests.soak.run import Size, soak

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def test_minutes_of_load_and_faults() -> None:
    report = soak(Size(rounds=3, seconds=30.0, clients=8, connections=1000))
    print(report.text())
    assert not report.failures
    assert [fault for fault, _ in report.faults] == ["SIGKILL", "SIGSTOP"]

"""The kept corpus holds the contract, as does what a minute of fuzzing makes of it; `make fuzz` takes an hour.

The minute's inputs are drawn from one seed: how far they go depends on the machine, which they are does not.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import MOST_BYTES, TARGETS, run

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 10


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    files = sorted((CORPUS / name).iterdir())
    assert files
    for file in files:
        run(TARGETS[name], file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_seconds_more(name: str, tmp_path: Path) -> None:
    # A process begins with the peak of memory of the one that starts it, here of all tests before: no limit on it. The
    # targets look at their own memory.
    limits = [f"-max_total_time={SECONDS}", f"-max_len={MOST_BYTES}", "-rss_limit_mb=0", "-seed=1"]
    options = [*limits, "-print_final_stats=1"]
    command = [sys.executable, "-m", "tests.fuzz", name, *options, f"-artifact_prefix={tmp_path}/"]
    result = subprocess.run(
        [*command, str(tmp_path), str(CORPUS / name)],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "stat::number_of_executed_units" in result.stderr

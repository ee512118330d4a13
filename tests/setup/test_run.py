"""`tests/run.sh` on a small suite: a test that fails once is run again alone, one that fails again is a failure."""

import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = """
import pytest

@pytest.mark.engine
def test_an_engine():
    pass
"""
FAILS_ONCE = """
from pathlib import Path

def test_one():
    seen = Path(__file__).with_suffix(".seen")
    if not seen.exists():
        seen.touch()
        raise AssertionError("the first time")
"""
HANGS_ONCE = """
import asyncio
from pathlib import Path

import pytest

@pytest.mark.timeout(2)
async def test_one():
    seen = Path(__file__).with_suffix(".seen")
    if not seen.exists():
        seen.touch()
        await asyncio.Event().wait()

def test_one_behind_it():
    pass
"""
FAILS = """
import pytest

@pytest.mark.parametrize("number", range({}))
def test_other(number):
    assert not number, "and again"
"""


def run(folder: Path, *suite: str) -> tuple[int, str]:
    """The exit status and what it prints, of a repository whose suite is an engine's test and these files."""
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "run.sh", folder / "tests")
    (folder / ".venv").symlink_to(ROOT / ".venv")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    kept = {name: settings[name] for name in ("asyncio_mode", "timeout_method", "markers")}
    lines = ["[tool.pytest.ini_options]", *(f"{name} = {json.dumps(value)}" for name, value in kept.items())]
    (folder / "pyproject.toml").write_text("\n".join(lines))
    for number, content in enumerate((ENGINE, *suite)):
        (folder / "tests" / f"test_{number}.py").write_text(content)
    done = subprocess.run([folder / "tests" / "run.sh"], capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout


def test_what_fails_once_is_named_and_run_alone(tmp_path: Path) -> None:
    status, printed = run(tmp_path, FAILS_ONCE)
    assert status == 0
    assert "the first time" in printed
    assert "once more, alone:\ntests/test_1.py::test_one\n" in printed


def test_what_hangs_once_is_run_alone_and_the_rest_goes_on(tmp_path: Path) -> None:
    status, printed = run(tmp_path, HANGS_ONCE)
    assert status == 0
    assert "Timeout" in printed
    assert "1 failed, 1 passed" in printed
    assert "once more, alone:\ntests/test_1.py::test_one\n" in printed


@pytest.mark.parametrize(("fails", "again"), [(1, True), (4, False)])
def test_what_fails_again_or_often_is_a_failure(tmp_path: Path, fails: int, again: bool) -> None:
    status, printed = run(tmp_path, FAILS_ONCE if again else "", FAILS.format(fails + 1))
    assert status == 1
    assert ("once more, alone" in printed) == again
    assert printed.count("and again") >= fails


def test_a_suite_that_cannot_be_read_fails(tmp_path: Path) -> None:
    status, printed = run(tmp_path, "import nothing_like_it")
    assert status != 0
    assert "once more" not in printed

"""Node and the packages of tests/clients/npm, which its lock pins; the tests that need them are skipped without npm."""

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "clients" / "npm"


def install() -> None:
    """Installs the packages from their lock, unless they are there; another run of the tests may do so meanwhile."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    lock, installed = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".package-lock.json"
    with (FOLDER / "package.json").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=FOLDER, check=True, capture_output=True)


def node(*command: str) -> str:
    """What Node prints that runs a script of that folder."""
    done = subprocess.run(["node", *command], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

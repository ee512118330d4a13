"""Node and the packages of tests/clients/npm, which its lock pins; the tests that need them are skipped without npm."""

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "clients" / "npm"
LACKING = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "ENOSPC")
"""Network and disk, by npm's codes."""


def install(folder: Path = FOLDER) -> None:
    """Installs what the lock in `folder` pins, unless it is there; another run of the tests may do so meanwhile.

    Skips the test where there is no npm, no network or no room.
    """
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    lock, installed = folder / "package-lock.json", folder / "node_modules" / ".package-lock.json"
    with (folder / "package.json").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            _ci(folder)


def _ci(folder: Path) -> None:
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    lacking = next((error for error in LACKING if error in done.stderr), None)
    if done.returncode and lacking:
        pytest.skip(f"npm cannot install here: {lacking}")
    assert done.returncode == 0, done.stderr


def node(*command: str) -> str:
    """What Node prints that runs a script of that folder."""
    done = subprocess.run(["node", *command], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

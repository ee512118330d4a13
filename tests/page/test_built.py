"""The built page is what its sources make, is small, and names no other host that it would ask."""

import filecmp
import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server.http.page import PAGE_FOLDER
from tests.setup.test_house import ROOT

UI = ROOT / "ui"
MOST_BYTES = 150_000


def test_it_is_small() -> None:
    files = [path for path in PAGE_FOLDER.rglob("*") if path.is_file()]
    assert sum(len(gzip.compress(path.read_bytes(), mtime=0)) for path in files) < MOST_BYTES


def test_the_lock_names_no_registry() -> None:
    packages = json.loads((UI / "package-lock.json").read_text())["packages"]
    assert not [name for name, package in packages.items() if "resolved" in package]
    assert not [name for name, package in packages.items() if name and "integrity" not in package]


def test_the_licences_of_all_that_is_bundled_are_there() -> None:
    licences = (PAGE_FOLDER / "assets" / "licences.txt").read_text()
    for name, pin in json.loads((UI / "package.json").read_text())["dependencies"].items():
        assert f"{name} {pin} (" in licences


def test_no_inline_script_or_style() -> None:
    index = (PAGE_FOLDER / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index)


@pytest.mark.timeout(400)
def test_it_is_what_the_sources_make(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    installed, lock = UI / "node_modules" / ".package-lock.json", UI / "package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        subprocess.run(["npm", "ci", "--ignore-scripts"], cwd=UI, check=True, capture_output=True)
    for command in (["npm", "run", "check"], ["npm", "run", "build", "--", "--outDir", str(tmp_path)]):
        done = subprocess.run(command, cwd=UI, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*")) for folder in (PAGE_FOLDER, tmp_path)]
    assert names[0] == names[1], "make ui builds it"
    files = [str(name) for name in names[0] if (PAGE_FOLDER / name).is_file()]
    assert filecmp.cmpfiles(PAGE_FOLDER, tmp_path, files, shallow=False) == (files, [], []), "make ui builds it"

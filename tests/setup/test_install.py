"""The installer with small packages made here, without an index: a finished environment, its stamp, its errors."""

import hashlib
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from requirements import install

TOOL = "setuptools"  # the installer takes it before the rest


def make_wheel(folder: Path, name: str, version: str) -> str:
    """Writes a wheel of one empty module and returns its lock entry."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{name}=={version} \\\n    --hash=sha256:{digest}\n    # via nothing\n"


class Release(NamedTuple):
    """As `sys.version_info`."""

    major: int
    minor: int


def pretend(monkeypatch: pytest.MonkeyPatch, release: tuple[int, int]) -> None:
    """The installer runs with this release."""
    other = SimpleNamespace(implementation=sys.implementation, platform=sys.platform, version_info=Release(*release))
    monkeypatch.setattr(install, "sys", other)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of a build tool and a package with a local version; pip is configured to find their wheels in a folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    path = tmp_path / "lock.txt"
    path.write_text(make_wheel(wheels, TOOL, "78.1.1") + make_wheel(wheels, "twin", "2.0+cpu"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return path


def installed(venv: Path, module: str) -> bool:
    """Whether the environment's interpreter can import `module`."""
    done = subprocess.run([venv / "bin" / "python", "-c", f"import {module}"], capture_output=True, check=False)
    return done.returncode == 0


def test_installs_the_lock_then_does_nothing(lock: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    install.set_up(venv, [lock], project=False)
    assert installed(venv, "twin")

    log = venv / "pip.log"
    log.unlink()
    install.set_up(venv, [lock], project=False)
    assert not log.exists()


def test_a_lock_of_wheels_alone_needs_no_build_tool(lock: Path, tmp_path: Path) -> None:
    lock.write_text(install.locked(lock)["twin"])
    install.set_up(tmp_path / "venv", [lock], project=False)
    assert installed(tmp_path / "venv", "twin")


def test_byte_code_is_made_of_the_noisy_packages_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    install.create(tmp_path / "venv", clear=False)
    install.compile_noisy(tmp_path / "venv")
    assert capfd.readouterr() == ("", "")


def test_of_two_entries_for_a_package_the_later_is_installed(lock: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(make_wheel(tmp_path / "wheels", "twin", "1.5"))
    venv = tmp_path / "venv"
    install.set_up(venv, [lock, other], project=False)
    code = "import importlib.metadata; print(importlib.metadata.version('twin'))"
    done = subprocess.run([venv / "bin" / "python", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1.5"


def test_an_interrupted_environment_is_made_anew(lock: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "half-written").touch()
    install.write_stamp(venv, install.expected_stamp(venv, [lock])._replace(content=install.UNFINISHED))
    install.set_up(venv, [lock], project=False)
    assert not (venv / "half-written").exists()
    assert installed(venv, "twin")


def test_a_file_with_another_hash_is_refused(lock: Path, tmp_path: Path) -> None:
    digest = install.locked(lock)[TOOL].partition("sha256:")[2].split()[0]
    lock.write_text(lock.read_text().replace(digest, "0" * 64))
    with pytest.raises(install.SetupError, match="could not install setuptools"):
        install.set_up(tmp_path / "venv", [lock], project=False)
    assert install.read_stamp(tmp_path / "venv") != install.expected_stamp(tmp_path / "venv", [lock])


def test_another_lock_is_another_stamp_in_the_same_environment(lock: Path, tmp_path: Path) -> None:
    before = install.expected_stamp(tmp_path, [lock])
    lock.write_text(lock.read_text() + "more==1\n")
    after = install.expected_stamp(tmp_path, [lock])
    assert before.base == after.base
    assert before.content != after.content


def test_a_stamp_cut_short_is_an_unfinished_environment(tmp_path: Path) -> None:
    (tmp_path / install.STAMP_NAME).write_text("3.11")
    stamp = install.read_stamp(tmp_path)
    assert stamp is not None
    assert stamp.content == install.UNFINISHED


def test_without_a_compiler_the_error_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(install.SetupError, match="gcc not found"):
        install.check_machine([])


@pytest.mark.parametrize("release", [(3, 11), (3, 12), (3, 13)])
def test_each_supported_release_of_python_will_do(monkeypatch: pytest.MonkeyPatch, release: tuple[int, int]) -> None:
    pretend(monkeypatch, release)
    install.check_machine([])
    assert install._python() == f"python{release[0]}.{release[1]}"


@pytest.mark.parametrize("release", [(3, 10), (3, 14)])
def test_another_release_is_told_which_would(monkeypatch: pytest.MonkeyPatch, release: tuple[int, int]) -> None:
    pretend(monkeypatch, release)
    with pytest.raises(install.SetupError, match=r"needs one of CPython 3\.11, 3\.12, 3\.13, not CPython"):
        install.check_machine([])


def test_the_releases_are_those_that_the_package_says_it_runs_on() -> None:
    project = tomllib.loads((install.ROOT / "pyproject.toml").read_text())["project"]
    oldest, newest = install.PYTHONS[0], install.PYTHONS[-1]
    assert project["requires-python"] == f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    named = {f"Programming Language :: Python :: {major}.{minor}" for major, minor in install.PYTHONS}
    assert named <= set(project["classifiers"])


def test_make_takes_whichever_release_is_there(tmp_path: Path) -> None:
    for name in ("python3.13", "sh"):
        (tmp_path / name).symlink_to("/bin/true" if name != "sh" else "/bin/sh")
    make = shutil.which("make")
    assert make is not None
    done = subprocess.run(
        [make, "-n", "setup"], cwd=install.ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert "python3.13 requirements/install.py" in done.stdout

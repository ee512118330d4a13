"""`python -m tests.published.fetch` brings the published templates into `runs/templates/`, as two projects gather them.

Most lie in the source package of llama-cpp-python (77 MB), which holds llama.cpp; some in TRL's. Both come from the
package index.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.published.templates import FOLDER


class Package(NamedTuple):
    """What holds templates: within its archive under `place`, here with `prefix` before their names."""

    name: str
    options: tuple[str, ...]
    sha256: str
    place: str
    prefix: str = ""


PACKAGES = (
    Package(
        "llama-cpp-python==0.3.36",
        ("--no-binary", "llama-cpp-python"),
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        "/vendor/llama.cpp/models/templates/",
    ),
    Package(
        "trl==1.16.0",
        ("--only-binary", "trl"),
        "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
        "trl/chat_templates/",
        "trl-",
    ),
)


def main() -> int:
    """The exit code."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return next((1 for package in PACKAGES if not _fetched(package)), 0)


def _fetched(package: Package) -> bool:
    """Whether the package is here now, and the one that the results are of."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *package.options, package.name]
        if subprocess.run(command, cwd=folder, check=False).returncode:
            return False
        (archive,) = Path(folder).iterdir()
        if hashlib.sha256(archive.read_bytes()).hexdigest() != package.sha256:
            sys.stderr.write(f"{package.name} is not the one that the results are of\n")
            return False
        for path, data in _files(archive):
            name = path.rpartition(package.place)[2]
            if package.place in path and name.endswith(".jinja"):
                (FOLDER / f"{package.prefix}{name}").write_bytes(data)
    return True


def _files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The files of an archive with their paths in it."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((name, wheel.read(name)) for name in wheel.namelist())
        return
    with tarfile.open(archive) as files:
        for member in files:
            if file := files.extractfile(member):
                yield member.name, file.read()


if __name__ == "__main__":
    sys.exit(main())

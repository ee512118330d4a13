"""`python -m tests.published.fetch` brings the published templates, as llama.cpp gathers them, into `runs/templates/`.

They lie in the source package of llama-cpp-python, 77 MB from the package index.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.published.templates import FOLDER

PACKAGE = "llama-cpp-python==0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
PLACE = "/vendor/llama.cpp/models/templates/"


def main() -> int:
    """The exit code."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python", PACKAGE]
        if subprocess.run(command, cwd=folder, check=False).returncode:
            return 1
        (package,) = Path(folder).glob("*.tar.gz")
        if hashlib.sha256(package.read_bytes()).hexdigest() != SHA256:
            sys.stderr.write(f"{PACKAGE} is not the one that the results are of\n")
            return 1
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tarfile.open(package) as files:
            for member in files:
                name = member.name.rpartition(PLACE)[2]
                if PLACE in member.name and name.endswith(".jinja") and (file := files.extractfile(member)):
                    (FOLDER / name).write_bytes(file.read())
    return 0


if __name__ == "__main__":
    sys.exit(main())

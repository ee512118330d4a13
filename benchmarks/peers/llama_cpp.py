"""llama.cpp's server from its source, and checkpoints in its format: `python -m benchmarks.peers.llama_cpp`.

The source comes with the sdist of llama-cpp-python, so a package index is enough to get it. Everything is kept in the
benchmarks' cache folder. Building takes seven minutes on two cores, once.
"""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

from benchmarks.load.checkpoints import cache_folder
from server.cli_errors import UsageError

VERSION = "0.3.36"
"""Of llama-cpp-python."""
_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
_INSIDE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
# GGML_NATIVE, the machine's own instructions, is the default. What serving text does not need is left out.
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


class Mend(NamedTuple):
    """Of a file of the source, a line (or a part of it) and what stands there instead."""

    file: str
    line: str
    mended: str


MENDS = (
    # GCC 12 takes the tiles' configuration for unread and leaves most of it out: with weights of 8 and 4 bits the
    # server then ends by an illegal instruction on CPUs with AMX. llama.cpp's own binaries, of newer compilers, do not.
    Mend(
        "ggml/src/ggml-cpu/amx/mmq.cpp",
        "_tile_loadconfig(&tc);",
        'asm volatile("" : : "m"(tc)); _tile_loadconfig(&tc);',
    ),
    # Only an EXAONE 4.0 of 64 layers has windows there, and global layers without positions, whatever its file says.
    # Ours have them too, and would be computed as models that they are not.
    Mend(
        "src/models/exaone4.cpp",
        "if (hparams.n_layer() == 64) {",
        "if (ml.get_key(LLM_KV_ATTENTION_SLIDING_WINDOW, hparams.n_swa, false)) {",
    ),
)

TOOLS = ("llama-server", "llama-quantize", "llama-perplexity")
"""What is built: the server, what makes a file of fewer bits, and what compares its distributions with another's."""


def source_folder() -> Path:
    """The folder of the source as it is mended, which may not exist yet."""
    mends = hashlib.sha256("\n".join(itertools.chain.from_iterable(MENDS)).encode()).hexdigest()[:8]
    return cache_folder() / f"llama.cpp-{VERSION}-{mends}"


def server_binary() -> Path:
    """The built server, which may not exist yet."""
    return source_folder() / "build" / "bin" / "llama-server"


def quantize_binary() -> Path:
    """What makes a GGUF file of fewer bits of another, built beside the server."""
    return server_binary().with_name("llama-quantize")


def build(jobs: int | None = None) -> Path:
    """Fetches and builds what is missing, and returns the server. Raises UsageError."""
    if all(server_binary().with_name(tool).exists() for tool in TOOLS):
        return server_binary()
    if shutil.which("cmake") is None or shutil.which("g++") is None:
        raise UsageError("llama.cpp's server is built with cmake and g++; install them (Debian: apt install cmake g++)")
    if not (source_folder() / "CMakeLists.txt").exists():
        _fetch(source_folder())
    log = source_folder() / "build.log"
    print(f"building llama.cpp's server; log: {log}", file=sys.stderr)
    with log.open("w") as output:
        for command in (
            ("cmake", "-B", "build", *_OPTIONS),
            ("cmake", "--build", "build", "--target", *TOOLS, f"-j{jobs or os.cpu_count()}"),
        ):
            done = subprocess.run(command, cwd=source_folder(), stdout=output, stderr=output, check=False)
            if done.returncode != 0:
                raise UsageError(f"llama.cpp's server could not be built: see {log}")
    return server_binary()


def gguf(checkpoint: Path, name: str) -> Path:
    """The checkpoint as a GGUF file in bf16, converted if the file does not exist yet. Raises UsageError."""
    target = cache_folder() / f"{name}-{_digest(checkpoint)}.gguf"
    if target.exists():
        return target
    if not (source_folder() / "convert_hf_to_gguf.py").exists():
        _fetch(source_folder())
    unfinished = target.with_suffix(".part")
    search = os.pathsep.join([str(source_folder() / "gguf-py"), str(source_folder())])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.llama_cpp_convert", checkpoint, "--outfile", unfinished],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UsageError(f"llama.cpp's converter does not take {checkpoint}: {last}")
    unfinished.rename(target)
    return target


def quantized_gguf(checkpoint: Path, name: str, weights: str) -> Path:
    """The same with weights of a kind of llama.cpp (Q8_0, Q4_K_M), made if it does not exist yet. Raises UsageError."""
    source = gguf(checkpoint, name)
    target = source.with_name(f"{source.stem}-{weights}.gguf")
    if target.exists():
        return target
    build()
    unfinished = target.with_suffix(".part")
    command = [str(quantize_binary()), str(source), str(unfinished), weights]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UsageError(f"llama-quantize does not make {weights} of {source}: {last}")
    unfinished.rename(target)
    return target


def _digest(checkpoint: Path) -> str:
    """A digest of the config and of the weights' time of change, so that a retrained checkpoint is converted anew."""
    weights = [
        f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in checkpoint.glob("*.safetensors")
    ]
    described = "\n".join([VERSION, (checkpoint / "config.json").read_text(), *sorted(weights)])
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _fetch(target: Path) -> None:
    """Extracts llama.cpp's part of the sdist to `target`."""
    folder = target.parent
    folder.mkdir(parents=True, exist_ok=True)
    wanted = folder / "llama-cpp-python.txt"
    wanted.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{_SHA256}\n")
    options = ("--no-deps", "--no-binary=:all:", "--require-hashes", "--no-input", "--disable-pip-version-check", "-q")
    command = [sys.executable, "-m", "pip", "download", *options, "-r", str(wanted), "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UsageError(f"the source of llama-cpp-python could not be fetched: {done.stderr.strip()[-300:]}")
    sdist = folder / f"llama_cpp_python-{VERSION}.tar.gz"
    unpacked = folder / "unpacked"
    with tarfile.open(sdist) as archive:
        members = [member for member in archive.getmembers() if member.name.startswith(_INSIDE)]
        archive.extractall(unpacked, members=members, filter="data")
    mend(unpacked / _INSIDE)
    (unpacked / _INSIDE).rename(target)
    shutil.rmtree(unpacked)
    sdist.unlink()


def mend(source: Path) -> None:
    """Puts the mended lines into a source. Raises UsageError where one is not there."""
    for name, line, mended in MENDS:
        text = (source / name).read_text()
        if line not in text:
            raise UsageError(f"llama.cpp's {name} has no line {line}: see why it is mended in {__file__}")
        (source / name).write_text(text.replace(line, mended))


if __name__ == "__main__":
    print(build())

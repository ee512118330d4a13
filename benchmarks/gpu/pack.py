"""Packs vLLM's CUDA build for a Hopper machine that has no network: `python -m benchmarks.gpu.pack`.

The machine has torch 2.11.0+cu130 and CPython 3.12. What it lacks, without code for other GPUs, goes into folders of at
most `--limit` MiB: `.gpu/N/*.tar.xz` and `.gpu/N/install.sh` (about eight minutes of one core and 3 GB of memory; needs
pip and strip). Take the folders along with the working tree (git does not see them) and begin the command there
with `. .gpu/1/install.sh`. The last folder has vLLM's front end in Rust, a peer of the stage `speed`: where there is
time for it, it goes along with a further command on the same machine. Nothing is downloaded there.

vLLM 0.32.0's CUDA extensions use torch's stable ABI and load under that torch; only _qutlass_C and DeepGEMM do not,
which are for FP4 and FP8. Its Python knows torch 2.11 and brings what that lacks.
"""

import argparse
import concurrent.futures
import lzma
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.load.checkpoints import cache_folder

# What Twogear's front end imports, with what that needs, where vLLM does not need it too.
FRONT_END = (
    *("cffi", "cryptography", "markdown-it-py", "mdurl", "prompt-toolkit", "pycparser", "pygments", "rich", "uvloop"),
    "wcwidth",
)
# What vLLM and Twogear import beyond the packages that the machine has, with vLLM's API server.
PACKAGES = [
    "annotated-types",
    "anthropic",
    "apache-tvm-ffi",
    "astor",
    "blake3",
    "cachetools",
    "cbor2",
    "compressed-tensors",
    "depyf",
    "dill",
    "docstring-parser",
    "email-validator",
    "dnspython",
    "fastapi",
    "gguf",
    "httpcore2",
    "httptools",
    "httpx2",
    "ijson",
    "interegular",
    "jiter",
    "jmespath",
    "jsonschema",
    "jsonschema-specifications",
    "lark",
    "llguidance",
    "lm-format-enforcer",
    "loguru",
    "mcp",
    "mcp-types",
    "mistral-common",
    "model-hosting-container-standards",
    "msgspec",
    "openai",
    "opentelemetry-api",
    "opentelemetry-sdk",
    "opentelemetry-semantic-conventions",
    "opentelemetry-semantic-conventions-ai",
    "orjson",
    "oss-harmony",
    "partial-json-parser",
    "prometheus-fastapi-instrumentator",
    "pybase64",
    "pydantic",
    "pydantic-core",
    "pydantic-extra-types",
    "pydantic-settings",
    "python-dotenv",
    "python-json-logger",
    "python-multipart",
    "pycountry",
    "pyzmq",
    "referencing",
    "rpds-py",
    "setproctitle",
    "sniffio",
    "sse-starlette",
    "starlette",
    "truststore",
    "typing-inspection",
    "uvicorn",
    "watchfiles",
    "websockets",
    "xgrammar",
    *FRONT_END,
]
TAGS = [f"manylinux_2_{n}_x86_64" for n in (5, 12, 17, 18, 24, 26, 27, 28, 31, 34)] + [
    *("manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64"),
]
RUST = "vllm/vllm-rs"
"""vLLM's front end in Rust: a peer, which travels in a folder of its own since it is not needed for the rest."""
# Of vLLM: for other models, quantizations and GPUs.
DROPPED = re.compile(
    r"vllm/(third_party/(deep_gemm|fmha_sm100|tml_fa4)/|_(qutlass|flashmla|flashkda|deepselect)[^/]*\.so$"
    r"|_flashmla_extension_C|vllm_flash_attn/_vllm_fa2_C|model_executor/layers/fused_moe/configs/.*\.json$"
    r"|.*\.(jpg|cu|cuh|hpp|h)$|entrypoints/serve/instrumentator/static/swagger-ui.*)"
    r"|mistral_common/data/.*|pycountry/locales/.*"
)
PRUNED = ("vllm/_C_stable_libtorch.abi3.so", "vllm/_moe_C_stable_libtorch.abi3.so")
FATBIN, ELF, PTX, HOPPER = 0xBA55ED50, 2, 1, 90
MIB = 1 << 20
TRAVELS = 64
"""MiB that the working tree and a folder may have together."""


def download(lock: Path, wheels: Path, packages: list[str], more: list[str]) -> list[Path]:
    """The wheels of CPython 3.12 in the lock's versions, and `more` (NAME==VERSION)."""
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock.read_text(), re.MULTILINE))
    missing = [name for name in packages if name not in pins]
    if missing:
        print("not in the lock, left out:", *missing)
    wanted = [f"{name}=={pins[name]}" for name in (*packages, "vllm") if name in pins] + more
    wheels.mkdir(parents=True, exist_ok=True)
    platforms = [word for tag in TAGS for word in ("--platform", tag)]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version",
            "3.12",
            "--implementation",
            "cp",
            "--abi",
            "cp312",
            "--abi",
            "abi3",
            "--abi",
            "none",
            *platforms,
            "-d",
            str(wheels),
            *wanted,
        ],
        check=True,
    )
    names = {one.partition("==")[0].lower().replace("-", "_") for one in wanted}
    return [path for path in sorted(wheels.glob("*.whl")) if path.name.partition("-")[0].lower() in names]


def unpack(wheels: list[Path], stage: Path) -> None:
    """As `pip install --target`, without scripts, and without what is dropped."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                name = info.filename
                if info.is_dir() or DROPPED.fullmatch(name) or DROPPED.match(name) or ".data/scripts/" in name:
                    continue
                name = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name)
                path = stage / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(info))


def fatbins(data: bytes) -> Iterator[tuple[int, int, list[tuple[int, int, int, int, int]]]]:
    """GPU code in a shared library: of each fatbin its offset, its header's size, and its images in order.

    An image: (offset of its header, header's size, payload's size, kind, architecture).
    """
    table, (size, count, names_at) = struct.unpack_from("<Q", data, 0x28)[0], struct.unpack_from("<HHH", data, 0x3A)
    heads = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    names = data[heads[names_at][4] :][: heads[names_at][5]]
    for head in heads:
        if names[head[0] : names.index(b"\0", head[0])] not in (b".nv_fatbin", b"__nv_relfatbin"):
            continue
        at, end = head[4], head[4] + head[5]
        while at < end - 16:
            magic, _, length, fat = struct.unpack_from("<IHHQ", data, at)
            if magic != FATBIN:
                at += 8
                continue
            entry, stop, found = at + length, at + length + fat, []
            while entry < stop:
                kind, _, own, payload = struct.unpack_from("<HHIQ", data, entry)
                (architecture,) = struct.unpack_from("<I", data, entry + 28)
                found.append((entry, own, payload, kind, architecture))
                entry += own + payload
            yield at, length, found
            at = (stop + 7) & ~7


def prune(path: Path, keep_ptx: bool) -> None:
    """Leaves in each fatbin what a Hopper GPU takes, in front, and zeroes behind it, which compress to nothing.

    A fatbin without code for Hopper (Marlin, FP4, Blackwell) keeps its images' headers over zeroes: nobody asks for
    it, and the driver would answer that there is no image for this GPU. With `keep_ptx` its newest PTX stays too.
    """
    old = path.read_bytes()
    data = bytearray(old)
    kept = dropped = 0
    for at, length, found in fatbins(old):
        end = found[-1][0] + found[-1][1] + found[-1][2]
        stays = [one for one in found if one[3] == ELF and one[4] == HOPPER]
        if not stays and keep_ptx:
            stays = [one for one in found if one[3] == PTX and one[4] <= HOPPER][-1:]
        kept += sum(one[2] for one in stays)
        dropped += sum(one[2] for one in found if one not in stays)
        if stays:
            body = b"".join(old[one[0] : one[0] + one[1] + one[2]] for one in stays)
            data[at + length : end] = body + bytes(end - at - length - len(body))
            struct.pack_into("<Q", data, at + 8, len(body))
        else:
            for one in found:
                data[one[0] + one[1] : one[0] + one[1] + one[2]] = bytes(one[2])
    assert len(data) == len(old)
    path.write_bytes(data)
    print(f"{path.name}: {kept / 1e6:.1f} MB of GPU code kept, {dropped / 1e6:.1f} MB zeroed")


def compress(name: str, files: list[Path], stage: Path, out: Path) -> Path:
    """One archive, ordered by kind of file: what is alike lies together."""
    target = out / f"{name}.tar.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 192 << 20}]
    with lzma.open(target, "wb", filters=filters) as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
        for path in sorted(files, key=lambda path: (path.suffix, str(path))):
            info = tarfile.TarInfo(str(path.relative_to(stage)))
            info.size = path.stat().st_size
            info.mode = 0o755 if ".so" in path.name or str(path).endswith(RUST) else 0o644
            with path.open("rb") as opened:
                archive.addfile(info, opened)
    return target


def groups(stage: Path) -> dict[str, list[Path]]:
    """Archives that unpack side by side."""
    made = defaultdict(list)
    for path in stage.rglob("*"):
        if path.is_file():
            top = path.relative_to(stage).parts[0]
            if "_vllm_fa3_C" in path.name:
                made["attention"].append(path)
            elif str(path).endswith(RUST):
                made["rust"].append(path)
            elif top == "vllm" and ".so" in path.name:
                made["kernels"].append(path)
            elif top.startswith("vllm"):
                made["vllm"].append(path)
            else:
                made["packages"].append(path)
    return made


INSTALL = r"""# Source this in the repository on the GPU machine: `. .gpu/1/install.sh` (again with each further chunk).
export SITE=${SITE:-/tmp/site} PY=${PY:-python3}
_begin=$(date +%s)
for _folder in /usr/local/nvidia/lib64 /usr/local/nvidia/lib; do
  [ -d $_folder ] && export LD_LIBRARY_PATH=$_folder:$LD_LIBRARY_PATH  # libcuda.so.1, before torch has loaded it
done
mkdir -p $SITE
for _archive in .gpu/*/*.tar.xz; do
  [ -e $SITE/.$(basename $_archive) ] && continue
  ( $PY - "$_archive" "$SITE" <<'PY' && touch $SITE/.$(basename $_archive) || echo "INSTALL FAILED: $_archive"
import lzma, sys, tarfile
with lzma.open(sys.argv[1]) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
    archive.extractall(sys.argv[2], filter="data")
PY
  ) &
done
wait
_stamp=$SITE/.bytecode-$(ls .gpu/*/*.tar.xz | wc -l)
if [ ! -e $_stamp ]; then  # compiled side by side: half of a first import
  $PY -m compileall -q -j 0 $SITE >/dev/null 2>&1; touch $_stamp
fi
# The plugin's entry point, as an installed Twogear has it.
mkdir -p $SITE/twogear-0.1.0.dist-info
printf 'Metadata-Version: 2.1\nName: twogear\nVersion: 0.1.0\n' > $SITE/twogear-0.1.0.dist-info/METADATA
printf '[vllm.general_plugins]\ntwogear = model_impl:register\n' > $SITE/twogear-0.1.0.dist-info/entry_points.txt
export PYTHONPATH=$SITE:$PWD PYTHONUNBUFFERED=1
export VLLM_USE_FLASHINFER_SAMPLER=0  # on by default; without flashinfer-python its import ends the engine
export VLLM_NO_USAGE_STATS=1 VLLM_CACHE_ROOT=/tmp/vllm-cache HF_HUB_OFFLINE=1
export TORCHINDUCTOR_CACHE_DIR=/tmp/inductor TRITON_CACHE_DIR=/tmp/triton
echo "installed in $(($(date +%s) - _begin)) s: $(du -sm $SITE | cut -f1) MiB"
$PY -c "
import time; t = time.time()
import torch, vllm
from vllm.platforms import current_platform as p
import vllm._C_stable_libtorch, vllm._moe_C_stable_libtorch
from vllm.vllm_flash_attn.flash_attn_interface import is_fa_version_supported
print('vLLM', vllm.__version__, 'torch', torch.__version__, p.get_device_name(), 'FA3', is_fa_version_supported(3),
      f'imported in {time.time() - t:.1f} s')"
"""


def folders(archives: Sequence[Path], limit: int) -> list[list[Path]]:
    """Which archives travel together, in at most `limit` bytes where each alone is not more; the largest first, and the
    front end in Rust last and alone.
    """
    made: list[list[Path]] = []
    filled = 0
    for archive in sorted(archives, key=lambda path: (_is_rust(path), -path.stat().st_size)):
        size = archive.stat().st_size
        if not made or filled + size > limit or _is_rust(archive):
            made.append([])
            filled = 0
        made[-1].append(archive)
        filled += size
    return made


def tree_bytes() -> int:
    """Of the working tree as it travels: what git tracks, and what it does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    return sum(Path(name).stat().st_size for name in set(names) if name and Path(name).is_file())


def _is_rust(archive: Path) -> bool:
    return archive.name.startswith("rust.")


def main() -> None:
    """Makes the folders that travel."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lock", type=Path, default=Path("requirements/cuda.txt"))
    parser.add_argument("--out", type=Path, default=Path(".gpu"))
    parser.add_argument(
        "--work", type=Path, default=cache_folder() / "gpu-pack", help="wheels and the unpacked packages"
    )
    parser.add_argument("--limit", type=float, default=46, help="MiB of a folder")
    parser.add_argument("--more", nargs="*", default=[], help="further NAME==VERSION")
    parser.add_argument("--keep-ptx", action="store_true", help="also kernels that have no code for Hopper (Marlin)")
    arguments = parser.parse_args()
    stage = arguments.work / "site"
    shutil.rmtree(stage, ignore_errors=True)
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    unpack(download(arguments.lock, arguments.work / "wheels", PACKAGES, arguments.more), stage)
    strip = shutil.which("strip")
    if strip is None:
        parser.error("strip not found; install binutils")
    for library in (*(stage / "vllm").rglob("*.so"), stage / RUST):
        subprocess.run([strip, "--strip-unneeded", str(library)], check=False, capture_output=True)
    for name in PRUNED:
        prune(stage / name, arguments.keep_ptx)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        archives = list(pool.map(lambda item: compress(item[0], item[1], stage, arguments.out), groups(stage).items()))
    travels = tree_bytes() / MIB
    for number, together in enumerate(folders(archives, int(arguments.limit * MIB)), 1):
        folder = arguments.out / str(number)
        folder.mkdir()
        for archive in together:
            print(f"{folder / archive.name}: {archive.stat().st_size / MIB:.1f} MiB")
            archive.rename(folder / archive.name)
        size = sum(path.stat().st_size for path in folder.iterdir()) / MIB
        print(f"{folder}: {size:.1f} MiB, with the tree {size + travels:.1f} of {TRAVELS}")
    for folder in arguments.out.iterdir():
        (folder / "install.sh").write_text(INSTALL)


if __name__ == "__main__":
    main()

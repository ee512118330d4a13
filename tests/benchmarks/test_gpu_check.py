"""What runs on a machine with a GPU, as far as one without can tell: stages, their limits, and what is packed."""

import lzma
import re
import struct
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.gpu import pack
from benchmarks.gpu.check import STAGES, Stage, run
from benchmarks.gpu.servers import compiled_late
from engine.defaults import Machine

ROOT = Path(__file__).parents[2]
ON_THE_MACHINE = {"httpx", "jinja2", "prometheus-client", "tokenizers"}
"""With torch and transformers."""


@pytest.fixture
def finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that finds two things."""
    (tmp_path / "finds_two.py").write_text("print('RESULT a: 1')\nprint('more')\nprint('RESULT b: 2')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "finds_two"


def test_a_stage_tells_what_it_found(tmp_path: Path, finds: str) -> None:
    told = run("one", Stage(60, ((finds,),)), tmp_path)
    assert (told["stage"], told["exit"], told["found"], told["tail"]) == ("one", 0, ["a: 1", "b: 2"], [])
    assert (tmp_path / "one.log").read_text().count("RESULT") == 2


def test_a_stage_that_fails_shows_its_end_and_the_next_command_runs(tmp_path: Path, finds: str) -> None:
    told = run("two", Stage(60, (("no_such_module_here",), (finds,))), tmp_path)
    assert (told["exit"], told["found"]) == (1, ["a: 1", "b: 2"])
    assert any("no_such_module_here" in line for line in told["tail"])


def test_a_stage_over_its_limit_ends(tmp_path: Path) -> None:
    assert run("three", Stage(0, (("http.server", "0"),)), tmp_path)["exit"] is None


def test_without_a_gpu_a_stage_that_needs_one_says_so(
    tmp_path: Path, finds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "detect", lambda: Machine("cpu", (0,), 1 << 30))
    told = run("four", Stage(60, ((finds,),), needs_gpu=True), tmp_path)
    assert (told["exit"], told["found"]) == (1, ["not run: there is no GPU here"])


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_runs_modules_that_are_there(name: str) -> None:
    for module, *_ in STAGES[name].commands:
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()


def test_all_that_the_front_end_imports_is_packed_and_locked() -> None:
    dependencies = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    assert dependencies - ON_THE_MACHINE <= set(pack.PACKAGES)
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / "requirements" / "cuda.txt").read_text(), re.MULTILINE))
    assert set(pack.PACKAGES) <= locked


def test_kernels_that_are_compiled_after_ready_are_told() -> None:
    kernel = "WARNING jit_monitor: Triton kernel JIT compilation during inference: _topk_topp_kernel"
    log = f"{kernel}\nReady after 33 s at http://127.0.0.1:8102 (twogear-tiny)\nfine\n{kernel}\n"
    assert compiled_late(log) == [kernel]
    assert compiled_late(f"{kernel}\n") == []


def test_the_front_end_in_rust_is_packed_and_travels_last() -> None:
    assert not pack.DROPPED.match(pack.RUST)
    assert pack.DROPPED.match("vllm/_qutlass_C.abi3.so")
    archives = [Path(f"{name}.tar.xz") for name in ("rust", "kernels")]
    assert max(archives, key=pack._is_rust).name == "rust.tar.xz"


def test_archives_travel_in_folders_below_the_limit(tmp_path: Path) -> None:
    sizes = {"attention": 8, "kernels": 10, "vllm": 6, "packages": 23, "rust": 14}
    archives = [tmp_path / f"{name}.tar.xz" for name in sizes]
    for path, size in zip(archives, sizes.values(), strict=True):
        path.write_bytes(bytes(size))
    made = [[path.name.partition(".")[0] for path in folder] for folder in pack.folders(archives, 34)]
    assert made == [["packages", "kernels"], ["attention", "vllm"], ["rust"]]


def test_an_archive_has_what_it_was_made_of(tmp_path: Path) -> None:
    """Of a wheel, without what is dropped, as the script on the machine unpacks it."""
    wheel, stage, out, site = (tmp_path / name for name in ("one.whl", "stage", "out", "site"))
    kept = {"vllm/a.py": b"a", "vllm/vllm-rs": b"r", "vllm/_moe_C.abi3.so": b"k", "one/b.py": b"b"}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in (kept | {"vllm/_qutlass_C.abi3.so": b"-", "one.data/scripts/run": b"-"}).items():
            archive.writestr(name, data)
    out.mkdir()
    pack.unpack([wheel], stage)
    groups = pack.groups(stage)
    assert set(groups) == {"vllm", "kernels", "rust", "packages"}
    for name, files in groups.items():
        with (
            lzma.open(pack.compress(name, files, stage, out)) as packed,
            tarfile.open(fileobj=packed, mode="r|") as tar,
        ):
            tar.extractall(site, filter="data")
    assert {name: (site / name).read_bytes() for name in kept} == kept
    assert (site / "vllm" / "vllm-rs").stat().st_mode & 0o111
    assert sum(path.is_file() for path in site.rglob("*")) == len(kept)


def image(kind: int, architecture: int, payload: bytes) -> bytes:
    """GPU code as a fatbin has it: a header of 64 bytes, and the payload."""
    head = struct.pack("<HHIQ", kind, 0, 64, len(payload)).ljust(28, b"\0") + struct.pack("<I", architecture)
    return head.ljust(64, b"\0") + payload


def library(fatbins: Sequence[Sequence[bytes]]) -> bytes:
    """As much of a shared library as there is to know: sections, their names, and the fatbins in one of them."""
    heads = [struct.pack("<IHHQ", pack.FATBIN, 1, 16, sum(map(len, images))) for images in fatbins]
    code = b"".join(head + b"".join(images) for head, images in zip(heads, fatbins, strict=True))
    names = b"\0.nv_fatbin\0.shstrtab\0"
    at = 64 + len(code)
    sections = [(1, 64, len(code)), (12, at, len(names))]
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, begin, size, 0, 0, 0, 0) for name, begin, size in sections
    )
    head = bytearray(64)
    struct.pack_into("<Q", head, 0x28, at + len(names))
    struct.pack_into("<HHH", head, 0x3A, 64, len(sections), 1)
    return bytes(head) + code + names + table


@pytest.mark.parametrize("keep_ptx", [False, True])
def test_code_for_other_gpus_is_zeroed(tmp_path: Path, keep_ptx: bool) -> None:
    """What a Hopper takes comes first; where there is none, the newest PTX if that is asked for, else headers alone."""
    ours, theirs = image(pack.ELF, 90, b"hopper--"), image(pack.ELF, 80, b"ampere--")
    old, new = image(pack.PTX, 75, b"ptx-old-"), image(pack.PTX, 80, b"ptx-new-")
    path = tmp_path / "library.so"
    path.write_bytes(library([[theirs, ours], [theirs, old, new]]))
    size = path.stat().st_size
    pack.prune(path, keep_ptx)
    left = path.read_bytes()
    assert len(left) == size
    assert left[80 : 80 + len(ours)] == ours
    assert [word in left for word in (b"hopper--", b"ampere--", b"ptx-old-", b"ptx-new-")] == [
        True,
        False,
        False,
        keep_ptx,
    ]
    found = [[(kind, architecture) for *_, kind, architecture in images] for _, _, images in pack.fatbins(left)]
    headers = [(pack.ELF, 80), (pack.PTX, 75), (pack.PTX, 80)]
    assert found == [[(pack.ELF, 90)], [(pack.PTX, 80)] if keep_ptx else headers]

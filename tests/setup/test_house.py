"""Rules of the repository that no linter knows: who imports whom, a docstring per file, no paths of one machine."""

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (
    *("server", "engine", "model_impl", "chat_templates", "tasks", "evals", "training", "benchmarks", "requirements"),
    "tests",
)
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# Absolute paths that only one person's machine has; an image's own user is everybody's.
PERSONAL_PATH = re.compile(r"(?<![\w.:/-])/(?:root|work|Users|mnt|home/(?!twogear\b))\b(?=/)")


class Module(NamedTuple):
    """What the rules look at of a file."""

    says_what_it_is_for: bool
    imports: tuple[tuple[str, tuple[str, ...]], ...]
    """Of each import, at its top or anywhere below, the module's full name, and what is taken from it."""


@cache
def module(path: Path) -> Module:
    text = path.read_text()
    tree = ast.parse(text)
    imports: list[tuple[str, tuple[str, ...]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports.append((node.module, tuple(alias.name for alias in node.names)))
    return Module(not text.strip() or ast.get_docstring(tree) is not None, tuple(imports))


def imported(path: Path) -> list[str]:
    """The full names of all modules that a file imports."""
    return [name for name, _ in module(path).imports]


@cache
def files_imported(path: Path) -> set[str]:
    """The files of this repository among them, as paths; of a package that is imported, what is taken from it."""
    found = set()
    for name, taken in module(path).imports:
        for one in (name, *(f"{name}.{part}" for part in taken)):
            file = Path(*one.split("."))
            found |= {
                candidate.as_posix()
                for candidate in (file.with_suffix(".py"), file / "__init__.py")
                if (ROOT / candidate).is_file() and ROOT / candidate != path
            }
    return found


def offenders(folders: tuple[str, ...], forbidden: tuple[str, ...], but: tuple[str, ...] = ()) -> list[str]:
    """`file: module` for every import of a forbidden top-level package in `folders`, the files under `but` excepted."""
    found = []
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(tuple(f"{folder}/" for folder in folders)) and not name.startswith(but):
            found += [f"{name}: {module}" for module in imported(path) if module.partition(".")[0] in forbidden]
    return found


def test_the_model_and_the_format_know_nothing_of_the_server() -> None:
    above = ("server", "engine", "tasks", "evals", "training", "benchmarks")
    assert not offenders(("model_impl", "chat_templates"), above)


def test_training_and_speed_know_nothing_of_each_other() -> None:
    """Both may ask with evals, which stands on tasks, which stands on the chat format's types alone."""
    assert not offenders(("training",), ("benchmarks",))
    assert not offenders(("benchmarks",), ("training",))
    assert not offenders(("evals",), ("training", "benchmarks", "engine", "model_impl"))
    assert not offenders(("tasks",), ("evals", "training", "benchmarks", "server", "engine", "model_impl"))


def test_the_front_end_imports_nothing_heavy() -> None:
    assert not offenders(("server",), ("torch", "vllm", "transformers"))


# From the top down. A file belongs to the first layer that its path begins with; single files of `server/` to the last.
LAYERS = (
    ("server/commands/", "server/cli.py"),
    (
        *("server/launch.py", "server/draining.py", "server/reloading.py", "server/model_files.py"),
        *("server/follower.py", "server/start_display.py"),
    ),
    ("server/app.py",),
    ("server/access/gate.py",),
    ("server/api/registry.py",),
    ("server/api/",),
    ("server/http/",),
    ("server/core/",),
    ("server/modes/",),
    ("server/",),
)


def layer_of(name: str) -> int:
    return next(index for index, paths in enumerate(LAYERS) if name.startswith(paths))


def server_imports() -> Iterator[tuple[str, str]]:
    """Each file of `server/` with each file of it that it imports."""
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("server/"):
            yield from ((name, other) for other in files_imported(path) if other.startswith("server/"))


def test_no_arrow_in_the_server_points_up() -> None:
    assert not [f"{name} -> {other}" for name, other in server_imports() if layer_of(other) < layer_of(name)]


def test_no_api_imports_another() -> None:
    def folder(name: str) -> str | None:
        found = re.match(r"server/api/(\w+)/", name)
        return found[1] if found and found[1] != "common" else None

    apis = [(folder(name), folder(other)) for name, other in server_imports()]
    assert not [(one, other) for one, other in apis if one and other and one != other]
    common = [(name, other) for name, other in server_imports() if name.startswith("server/api/common/")]
    assert not [f"{name} -> {other}" for name, other in common if folder(other)]


IMPORT_VLLM = {
    *("engine/adapters.py", "engine/conversion.py", "engine/loading.py", "engine/loop.py"),
    "engine/vllm_internals/ahead_scheduler.py",
    "engine/vllm_internals/adapter_kernels.py",
    *("engine/vllm_internals/continuation.py", "engine/vllm_internals/counted_pool.py"),
    *("engine/vllm_internals/cpu_worker.py", "engine/vllm_internals/fewer_copies.py"),
    "engine/vllm_internals/kv_cache_manager.py",
    "engine/vllm_internals/model_runner.py",
    *("engine/vllm_internals/page_counter.py", "engine/vllm_internals/pool_size.py"),
    *("engine/vllm_internals/recovery.py", "engine/vllm_internals/runner_limits.py"),
    "engine/vllm_internals/sampler.py",
    "engine/vllm_internals/prompt_parts.py",
    "engine/vllm_internals/scheduler.py",
    *("model_impl/__init__.py", "model_impl/exaone4/model.py"),
    *("model_impl/cpu/decode.py", "model_impl/cpu/packed.py", "model_impl/cpu/prefill.py"),
    *("model_impl/cpu/quantized.py", "model_impl/cpu/ready_made.py", "model_impl/gguf/loading.py"),
    *(
        "benchmarks/linear_cost.py",
        "benchmarks/gpu/kernels.py",
        "benchmarks/gpu/parity.py",
        "benchmarks/host/fake_engine.py",
        "benchmarks/host/paced.py",
        "benchmarks/host/steps.py",
        "benchmarks/peers/vllm_bench.py",
        "benchmarks/quantized_cost.py",
        "benchmarks/sampling_cost.py",
    ),
}


def test_vllm_is_imported_where_it_is_run_and_nowhere_else() -> None:
    found = {name.partition(":")[0] for name in offenders(FOLDERS[:-1], ("vllm",))}
    assert found == IMPORT_VLLM


def test_only_one_folder_reaches_inside_vllms_running_engine() -> None:
    """The rest of the engine process imports of vLLM's v1 what one starts an engine with, and goes no deeper."""
    outside = list((ROOT / "engine").glob("*.py"))
    modules = {name for path in outside for name in imported(path) if name.startswith("vllm.v1")}
    assert modules <= {"vllm.v1.engine.llm_engine", "vllm.v1.executor"}
    inner = {"engine_core", "scheduler", "kv_cache_manager", "model_runner", "model_executor"}
    reached = [
        f"{path.name}:{node.lineno}"
        for path in outside
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in inner
    ]
    assert not reached


def test_nothing_installed_imports_the_tests() -> None:
    assert not offenders(FOLDERS[:-1], ("tests",))


def test_every_file_says_what_it_is_for() -> None:
    assert not [str(path) for path in SOURCES if not module(path).says_what_it_is_for]


def tracked() -> list[str]:
    """The files that git knows; skips the test where there is no checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name]


def test_the_folder_that_is_served_holds_what_serving_needs_and_the_card() -> None:
    weights = {"model.safetensors", "config.json", "generation_config.json"}
    wanted = weights | {"tokenizer.json", "tokenizer_config.json", "README.md"}
    assert {name for name in tracked() if name.startswith("models/")} == {f"models/twogear-tiny/{n}" for n in wanted}


def test_no_file_names_a_path_of_one_machine() -> None:
    found = []
    for name in tracked():
        content = (ROOT / name).read_bytes() if (ROOT / name).exists() else b""
        if b"\0" not in content:
            found += [f"{name}: {match.group()}" for match in PERSONAL_PATH.finditer(content.decode())]
    assert not found

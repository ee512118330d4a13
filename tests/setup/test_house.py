"""Rules of the repository that no linter knows: who imports whom, a docstring per file, no paths of one machine."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (
    *("server", "engine", "model_impl", "chat_templates", "tasks", "evals", "training", "benchmarks", "requirements"),
    "tests",
)
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
# Absolute paths that only one person's machine has; an image's own user is everybody's.
PERSONAL_PATH = re.compile(r"(?<![\w.:/-])/(?:root|work|Users|mnt|home/(?!twogear\b))\b(?=/)")


def imported(path: Path) -> Iterator[str]:
    """The full names of all modules that a file imports, at its top or anywhere below."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


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


def test_the_packages_of_the_server_stand_on_one_another() -> None:
    """A package stands on those after it in the list and on single files, never the other way round."""
    order = ["commands", "http"]
    found = []
    for index, package in enumerate(order):
        above = tuple(f"server.{name}" for name in order[:index])
        for path in (ROOT / "server" / package.replace(".", "/")).glob("*.py"):
            found += [f"{path.relative_to(ROOT)}: {name}" for name in imported(path) if name.startswith(above)]
    assert not found


def test_vllm_is_imported_where_it_is_run_and_nowhere_else() -> None:
    folders = ("chat_templates", "tasks", "evals", "training", "benchmarks", "requirements")
    assert not offenders(
        folders, ("vllm",), but=("benchmarks/peers/", "benchmarks/sampling_cost.py", "benchmarks/linear_cost.py")
    )


def test_nothing_installed_imports_the_tests() -> None:
    assert not offenders(FOLDERS[:-1], ("tests",))


def test_every_file_says_what_it_is_for() -> None:
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in SOURCES}
    assert not [name for name, text in sources.items() if text.strip() and not ast.get_docstring(ast.parse(text))]


def test_no_file_names_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        content = (ROOT / name).read_bytes() if (ROOT / name).exists() else b""
        if b"\0" not in content:
            found += [f"{name}: {match.group()}" for match in PERSONAL_PATH.finditer(content.decode())]
    assert not found

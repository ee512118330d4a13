"""The docs are true: links and files exist, and tables agree with the result files that they name."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "models" / "twogear-tiny" / "README.md",
    ROOT / "engine" / "vllm_internals" / "README.md",
]
FOLDERS = "server|engine|model_impl|chat_templates|tasks|evals|training|benchmarks|tests|requirements|models|docs"
FILE = re.compile(rf"`((?:{FOLDERS})/[\w./-]*\w)`")
TABLE = re.compile(r"<!-- (benchmarks/results/\S+\.json) -->\n((?:\|.*\n)+)")


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_names_exists(doc: Path) -> None:
    text = doc.read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert not [target for target in links if not (doc.parent / target).exists()]
    assert not [name for name in FILE.findall(text) if not (ROOT / name).exists()]


def test_each_addition_to_the_project_is_a_list_of_files() -> None:
    sections = dict(re.findall(r"^## Add (.+)\n((?:(?!## ).*\n)+)", CONTRIBUTING.read_text(), re.MULTILINE))
    wanted = {"a mode", "a model family", "an architecture", "an API", "a request field", "a problem family"}
    assert set(sections) == wanted
    for name, text in sections.items():
        entries = re.findall(r"^- .*(?:\n  .*)*", text, re.MULTILINE)
        assert entries, name
        assert [entry for entry in entries if "`" in entry] == entries, name
        assert FILE.findall(text), name


def cells(table: str) -> list[list[str]]:
    """Of the rows below the head."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_tables_are_those_of_the_result_files() -> None:
    tables = [found for doc in DOCS for found in TABLE.findall(doc.read_text())]
    assert tables
    for source, table in tables:
        result = json.loads((ROOT / source).read_text())
        if "gain" in result:
            assert [row[1:] for row in cells(table)] == [
                [f"{result['gain'][method][mode] * 100:+.1f}" for method in ("agapo", "grpo", "sft")]
                for mode in ("reasoning", "standard")
            ]
            continue
        if result["what"] == "sampling_cost":
            assert cells(table) == sampling_rows(result)
            continue
        if result["what"] == "training_cost":
            assert cells(table) == [training_row(entry) for entry in result["table"]]
            continue
        expected = result.get("families", result.get("kinds")) | {"all": result["summary"]}
        shown = {name: {"standard": standard, "reasoning": reasoning} for name, standard, reasoning in cells(table)}
        assert shown == {
            name: {mode: f"{accuracy[mode] * 100:.1f} %" for mode in ("standard", "reasoning")}
            for name, accuracy in expected.items()
        }


def sampling_rows(result: dict[str, Any]) -> list[list[str]]:
    ratios = {(e["logits"], e["rows"], e["sampler"], e["kind"]): e["over_greedy"] for e in result["table"]}
    kinds = list(product(("twogear", "vllm"), ("top-p", "top-p+top-k")))
    return [
        [f"{logits}, {rows}", *(f"{ratios[logits, rows, *kind]:.2f}" for kind in kinds)]
        for logits, rows in product(("flat", "peaked"), (1, 8, 32))
    ]


def training_row(entry: dict[str, Any]) -> list[str]:
    rates = (f"{entry[kind]:,.0f}" for kind in ("twogear", "torch"))
    return [" × ".join(map(str, entry["shape"])), *rates, f"{entry['speedup']:.2f}"]


@pytest.mark.parametrize(
    ("head", "servers"),
    [
        ("| model, requests at once |", ("twogear", "vllm", "vllm-tuned", "llama.cpp")),
        ("| requests at once | Twogear, int8", ("twogear-int8", "twogear-int4", "llama.cpp-q8_0", "llama.cpp-q4_k_m")),
    ],
)
def test_the_speed_that_the_readme_tells_is_that_of_the_results(head: str, servers: tuple[str, ...]) -> None:
    text = (ROOT / "README.md").read_text()
    shown = [row[1:] for row in cells(text[text.index(head) :].partition("\n\n")[0])]
    performance = (ROOT / "docs" / "performance.md").read_text()  # another test holds it to the result files
    measured = [row for table in performance.split("\n\n") for row in columns(table, servers)]
    assert shown
    assert all(row in measured for row in shown)


def columns(text: str, names: tuple[str, ...]) -> list[list[str]]:
    """Those of a table of loads that are so named; none where it lacks one."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    if not lines or lines[0][0] != "load" or not set(names) <= set(lines[0]):
        return []
    places = [lines[0].index(name) for name in names]
    return [[row[place] for place in places] for row in lines[2:]]

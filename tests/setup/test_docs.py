"""The docs say what is there: links lead somewhere, files exist, tables agree with the result files they name."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "models" / "twogear-tiny" / "README.md"]
FOLDERS = "server|model_impl|chat_templates|training|benchmarks|tests|requirements|models|docs"
FILE = re.compile(rf"`((?:{FOLDERS})/[\w./-]*\w)`")
TABLE = re.compile(r"<!-- (benchmarks/results/\S+\.json) -->\n((?:\|.*\n)+)")


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_document_names_exists(doc: Path) -> None:
    text = doc.read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert not [target for target in links if not (doc.parent / target).exists()]
    assert not [name for name in FILE.findall(text) if not (ROOT / name).exists()]


def test_tables_are_those_of_the_result_files() -> None:
    tables = [found for doc in DOCS for found in TABLE.findall(doc.read_text())]
    assert tables
    for source, table in tables:
        result = json.loads((ROOT / source).read_text())
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
        expected = result.get("families", result.get("kinds")) | {"all": result["summary"]}
        shown = {name: {"standard": standard, "reasoning": reasoning} for name, standard, reasoning in rows}
        assert shown == {
            name: {mode: f"{accuracy[mode] * 100:.1f} %" for mode in ("standard", "reasoning")}
            for name, accuracy in expected.items()
        }

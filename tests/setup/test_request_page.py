"""docs/request.md is held to the code's imports: a request meets the files in its order, and each file is named."""

import re

import pytest

from tests.setup.test_house import ROOT, files_imported

PAGE = (ROOT / "docs" / "request.md").read_text()
CODE = r"`((?:server|engine)/[\w/]+\.py)`"
TABLE, REST = PAGE.partition("\nWhat travels")[::2]
STEPS = re.findall(CODE, TABLE.partition("| step |")[2])
LEAVES = re.findall(CODE, REST.partition("\n## ")[0])
ENTRIES = ("server/api/chat/routes.py", "engine/loop.py")


def ours(name: str) -> list[str]:
    """The files of the front end and the engine that a file imports."""
    imported = files_imported(ROOT / name)
    return sorted(one for one in imported if one.startswith(("server/", "engine/")) and not one.endswith("__init__.py"))


def test_each_file_is_named_once() -> None:
    assert STEPS
    assert LEAVES
    assert len({*STEPS, *LEAVES}) == len(STEPS) + len(LEAVES)
    assert not [name for name in [*STEPS, *LEAVES] if not (ROOT / name).is_file()]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_imports_later_steps_and_leaves_only(name: str) -> None:
    later = STEPS[STEPS.index(name) + 1 :]
    assert not [other for other in ours(name) if other not in later and other not in LEAVES]


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_imports_leaves_only(name: str) -> None:
    assert not [other for other in ours(name) if other not in LEAVES]


def test_every_file_on_the_path_is_named() -> None:
    found: set[str] = set()
    ahead = list(ENTRIES)
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead += ours(name)
    assert not sorted(found - {*STEPS, *LEAVES})

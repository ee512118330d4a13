"""Prompts and training text are exactly those of the golden files, id by id."""

from pathlib import Path

import pytest

from tests.chat_templates.golden_files import FOLDER, golden_files

FILES = list(golden_files())


@pytest.mark.parametrize(("path", "text"), FILES, ids=[path.stem for path, _ in FILES])
def test_golden(path: Path, text: str) -> None:
    assert text == path.read_text(encoding="utf-8"), "if this is meant: python -m tests.chat_templates.regenerate"


def test_no_file_is_stale() -> None:
    assert {path for path, _ in FILES} == set(FOLDER.iterdir())

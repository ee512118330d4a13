"""A small tokenizer, trained once for all tests: that takes longer than most of them."""

import shutil
from pathlib import Path

import pytest

from training import recipe as recipes
from training import tokenizer as tokenizer_files

SMOKE = Path("training/recipes/smoke.toml")


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke recipe's, in a folder of its own."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_files.save(tokenizer_files.train(recipes.load(SMOKE).model.vocabulary_size, seed=1), folder)
    return folder


def with_tokenizer(folder: Path, tokenizer: Path) -> Path:
    """The folder of a run that need not train a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in tokenizer_files.FILES:
        shutil.copy(tokenizer / name, folder)
    return folder

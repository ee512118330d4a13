"""The lines by which a stage tells what it found."""

import os
from pathlib import Path

PREFIX = "RESULT "


def result(name: str, value: object) -> None:
    """One finding, in one line of the stage's log."""
    print(f"{PREFIX}{name}: {value}", flush=True)


def results_folder() -> Path:
    """Where the files of the results go: the folder that the variable OUT names, else this one."""
    return Path(os.environ.get("OUT", "."))

"""Prints the entries of one lock that another lacks or pins otherwise; run by `lock-vllm.sh`."""

import sys
from pathlib import Path

from requirements.install import locked


def difference(base: dict[str, str], other: dict[str, str]) -> str:
    """The entries of `other`, as `locked` gives them, whose pins are not those of `base`."""
    return "".join(entry for name, entry in other.items() if _pin(entry) != _pin(base.get(name, "")))


def _pin(entry: str) -> str:
    return entry.partition(" ")[0]


if __name__ == "__main__":
    sys.stdout.write(difference(*(locked(Path(name)) for name in sys.argv[1:])))

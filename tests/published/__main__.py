"""`python -m tests.published` compares the templates that were fetched, and writes what came of it."""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.published.compare import Compared
from tests.published.fetch import PACKAGES
from tests.published.templates import PUBLISHED

RESULTS = Path(__file__).parent / "results.json"


def main() -> int:
    """The exit code: 1 where a template comes out otherwise than expected."""
    missing = [published.file for published in PUBLISHED if not published.path.is_file()]
    if missing:
        sys.stderr.write(f"not here, run `python -m tests.published.fetch`: {', '.join(missing)}\n")
        return 1
    found: dict[str, Any] = {}
    for published in PUBLISHED:
        digest = hashlib.sha256(published.path.read_bytes()).hexdigest()
        found[published.file] = {"sha256": digest, **Compared(published).outcome()}
    made = {
        "command": "python -m tests.published",
        "sources": [package.name for package in PACKAGES],
        "versions": {name: version(name) for name in ("transformers", "jinja2")},
        "templates": found,
    }
    RESULTS.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    odd = [name for name, one in found.items() if any("not known why" in why for why in one["different"])]
    total, equal = (sum(one[key] for one in found.values()) for key in ("renderings", "equal"))
    sys.stdout.write(f"{equal} of {total} renderings of {len(found)} templates are equal; not known why: {odd}\n")
    return int(bool(odd))


if __name__ == "__main__":
    sys.exit(main())

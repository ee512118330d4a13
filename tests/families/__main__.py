"""`python -m tests.families [NAME …]`: runs families, all if none is named, and writes what came of it."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from tests.families.checkpoints import FAMILIES
from tests.families.checks import CHECKS
from tests.families.run import RESULTS, asked

SHOWN_LINES = 80
"""Of what the server said, where a check failed."""


def outcome(name: str) -> dict[str, Any]:
    """What came of each check: true, or the pages that were kept, or the reason why not."""
    with tempfile.TemporaryDirectory() as folder, asked(name, Path(folder)) as asking:
        found: dict[str, Any] = {}
        for title, check in CHECKS.items():
            try:
                found[title] = check(asking) or True
            except (AssertionError, LookupError, ValueError, httpx.HTTPError) as error:
                found[title] = f"no: {str(error)[:400]}"
                sys.stderr.write(f"{name}, {title}: {error}\n" + "\n".join(asking.said[-SHOWN_LINES:]) + "\n")
        return found


def main() -> int:
    """The exit code: 1 where a check failed."""
    import vllm  # takes seconds

    known = json.loads(RESULTS.read_text())["families"] if RESULTS.is_file() else {}
    for name in sys.argv[1:] or FAMILIES:
        try:
            known[name] = outcome(name)
        except RuntimeError as error:
            known[name] = {"start": f"no: {str(error)[-600:]}"}
        sys.stdout.write(f"{name}: {json.dumps(known[name], ensure_ascii=False)}\n")
        sys.stdout.flush()
        made = {
            "command": "python -m tests.families",
            "vllm": vllm.__version__,
            "families": dict(sorted(known.items())),
        }
        RESULTS.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    return int(any(str(value).startswith("no:") for one in known.values() for value in one.values()))


if __name__ == "__main__":
    sys.exit(main())

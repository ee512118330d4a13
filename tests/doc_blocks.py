"""The fenced blocks of README and docs, each with what stands before it."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "models" / "twogear-tiny" / "README.md",
    ROOT / "engine" / "vllm_internals" / "README.md",
]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*\Z", re.DOTALL)
LAST_COMMENT = re.compile(r"<!-- (.+?) -->\n\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """`why_not`: why the suite cannot run it, by the comment `<!-- not run: … -->` before it.

    `comment`: any other comment right before it, such as `try GET /health 200`. `after`: the block that this one
    follows in its section.
    """

    page: str
    line: int
    language: str
    name: str
    code: str
    why_not: str = ""
    comment: str = ""
    after: "Block | None" = None

    @property
    def id(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """In the order of the page."""
    text, page = path.read_text(), path.relative_to(ROOT).as_posix()
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        why_not, comment = NOT_RUN.search(before), LAST_COMMENT.search(before)
        same_section = bool(found) and "\n#" not in text[end : match.start()]
        language, _, name = match["info"].partition(" ")
        found.append(
            Block(
                page,
                before.count("\n") + 1,
                language,
                name,
                match["code"],
                " ".join(why_not[1].split()) if why_not else "",
                comment[1] if comment and not why_not else "",
                found[-1] if same_section else None,
            )
        )
        end = match.end()
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
ASKS = "http://127.0.0.1:8000"
EXAMPLES = [b for b in BLOCKS if b.language in ("python", "bash", "js") and ASKS in b.code and not b.why_not]
"""Those that tests/clients/test_docs.py runs against the real server."""

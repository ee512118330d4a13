"""The docs as a site: every link leads somewhere, every page is in the navigation, nothing is loaded from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.page.chromium import SLOW_MS, chromium, needs_chromium

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"([^\"]*)\"|<link\b[^>]*\bhref=\"([^\"]*)\"")


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does."""
    options = ["--fail-on-warning", "--keep-going", "--quiet", "-c", str(DOCS), "-d", f"{target}.doctrees"]
    command = [sys.executable, "-m", "sphinx", *options, str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("docs") / "site"
    done = build(DOCS, target)
    assert (done.returncode, done.stderr) == (0, "")
    return target


def test_make_docs_builds_it_strictly() -> None:
    (line,) = re.findall(r"^docs:.*\n\t(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line.endswith("-m sphinx --fail-on-warning --keep-going --quiet docs site")


@pytest.mark.parametrize("wrong", ["[a page](missing.md)", "[a part](other.md#missing)", "![a picture](missing.png)"])
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path: Path, wrong: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "index.md").write_text(f"# One\n\n{wrong}\n\n```{{toctree}}\nother\n```\n")
    (source / "other.md").write_text("# Other\n\n## There\n")
    done = build(source, tmp_path / "site")
    assert done.returncode == 1
    assert "missing" in done.stderr


def test_every_page_is_one_click_away(site: Path) -> None:
    home = (site / "index.html").read_text()
    pages = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")} - {"index.html"}
    linked = set(re.findall(r'<li class="toctree-l1[^"]*"><a class="reference internal" href="([^"#]+)"', home))
    assert pages == linked


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    loaded = {one or other for page in pages for one, other in LOADED.findall(page.read_text())}
    assert pages
    assert loaded
    assert not [address for address in loaded if "//" in address]
    assert not [style for style in site.rglob("*.css") if re.search(r"url\(['\"]?(?:https?:)?//", style.read_text())]


@needs_chromium
def test_search_works_from_the_files_alone(site: Path) -> None:
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(SLOW_MS)
        page.goto((site / "index.html").as_uri())
        page.get_by_placeholder("Search").first.fill("thinking_token_budget")
        page.keyboard.press("Enter")
        expect(page.locator("#search-results li a", has_text="Modes and budgets")).to_be_visible()
        page.locator("#search-results li a", has_text="Modes and budgets").click()
        expect(page.get_by_role("heading", name="Bound the thinking")).to_be_visible()

"""How long the page's tasks are while a long thought streams: `python -m tests.page.long_thought [--json FILE]`.

A server with a scripted model sends a thought of ten thousand tokens, as fast as the embedded model or slower.
Chromium's trace tells how long each task of the page's main thread took. The thought is folded, or unfolded while it
comes; then the folded one is unfolded at once. The goal: no task over 50 ms, from which on a browser calls a task long.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from benchmarks.load.machine import measure
from benchmarks.load.records import commit, today
from benchmarks.result_text import result_text
from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.page.chromium import chromium
from tests.page.conftest import DESKTOP, LONG, Model
from tests.page.doing import ask, runs, settle
from tests.scripted_server import serving

TOKENS = 10_000
PAUSES = {"2,000 tokens/s": 0.004, "200 tokens/s": 0.04}
"""Seconds between events of eight tokens."""
TOKENS_A_STEP = 8
LONG_MS = 50.0
CATEGORIES = ["toplevel", "devtools.timeline", "disabled-by-default-devtools.timeline"]


@dataclass(frozen=True)
class Tasks:
    """Of the page's main thread, in milliseconds. `longest_cpu_ms`: of its own work, whatever else the machine does."""

    what: str
    count: int
    over_50_ms: int
    p99_ms: float
    longest_ms: float
    longest_five_ms: list[float]
    longest_cpu_ms: float

    @classmethod
    def of(cls, what: str, trace: bytes) -> "Tasks":
        """From Chromium's trace, `{"traceEvents": …}` with durations in microseconds, `tdur` those on the CPU."""
        events: list[dict[str, Any]] = json.loads(trace)["traceEvents"]
        main = {
            (e["pid"], e["tid"])
            for e in events
            if e["name"] == "thread_name" and e["args"].get("name") == "CrRendererMain"
        }
        spans = [
            (e["dur"] / 1000, e.get("tdur", 0) / 1000)
            for e in events
            if e["name"] in ("RunTask", "ThreadControllerImpl::RunTask") and (e["pid"], e["tid"]) in main and "dur" in e
        ]
        tasks = sorted(ms for ms, _ in spans)
        long, cpu = sum(ms >= LONG_MS for ms in tasks), max(cpu for _, cpu in spans)
        return cls(what, len(tasks), long, tasks[int(len(tasks) * 0.99)], tasks[-1], tasks[:-6:-1], cpu)


def thought_of(fmt: ChatFormat, tokens: int) -> str:
    """Text of so many tokens that does not go round in circles."""
    return fmt.decode(fmt.encode_text(LONG)[:tokens])


@contextmanager
def server(pause: float) -> Iterator[str]:
    """The address of a server whose model thinks for `TOKENS`, with `pause` seconds between its steps."""
    fmt = ChatFormat.from_folder(EMBEDDED_MODEL)
    profile = load_profile(PROFILE_FOLDER / "twogear_tiny.toml")
    model = Model(fmt, thought=thought_of(fmt, TOKENS), pause=pause)
    engine = model.engine(max_context=100_000, chunks=(TOKENS_A_STEP,))
    with serving(create_app(engine, Settings(), profile, fmt)) as url:
        yield url.removesuffix("/v1")


def traced(browser: Browser, page: Page, what: str, unfolded: bool) -> Iterator[Tasks]:
    """The tasks while the thought comes; folded, also those of unfolding it at its end."""
    browser.start_tracing(page=page, categories=CATEGORIES)
    ask(page, "Hi", mode="reasoning")
    summary = runs(page).locator(".thought summary")
    if unfolded:
        summary.click()
    settle(page)
    yield Tasks.of(f"{what}, {'unfolded' if unfolded else 'folded'}", browser.stop_tracing())
    if not unfolded:
        browser.start_tracing(page=page, categories=CATEGORIES)
        summary.click()
        page.wait_for_timeout(500)
        yield Tasks.of(f"{what}, unfolding it all", browser.stop_tracing())


def run(rounds: int) -> Iterator[Tasks]:
    """All of them, `rounds` times."""
    with chromium() as browser:
        for _ in range(rounds):
            for what, pause in PAUSES.items():
                for unfolded in (False, True):
                    with server(pause) as url:
                        page = browser.new_page(viewport=DESKTOP)  # type: ignore[arg-type]
                        page.goto(url)
                        page.get_by_label("reasoning").wait_for(state="attached")
                        yield from traced(browser, page, what, unfolded)
                        page.close()


def main() -> None:
    """Prints a line for each, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    found = []
    for tasks in run(args.rounds):
        found.append(tasks)
        print(
            f"{tasks.what:35} {tasks.count:6} tasks, {tasks.over_50_ms} of 50 ms or more, "
            f"99 % under {tasks.p99_ms:.1f} ms, longest {tasks.longest_ms:.1f} ms "
            f"({tasks.longest_cpu_ms:.1f} ms of work)",
            flush=True,
        )
    result = {
        "what": "page_long_thought",
        "command": f"python -m tests.page.long_thought --rounds {args.rounds}",
        "date": today(),
        "commit": commit(),
        "machine": asdict(measure()),
        "tokens": TOKENS,
        "tokens_a_step": TOKENS_A_STEP,
        "tasks": [asdict(tasks) for tasks in found],
    }
    if args.json:
        args.json.write_text(result_text(result))


if __name__ == "__main__":
    main()

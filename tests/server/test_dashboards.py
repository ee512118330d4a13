"""The dashboard and the alerts in deploy/grafana: a real Prometheus gets data for each of their expressions."""

import asyncio
import json
import math
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from chat_templates.format import ChatFormat
from engine.messages import STEP_TOKENS, PageGroup, Stats
from server.engine_client import EngineStatus
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.prometheus import SCRAPE_SECONDS, Prometheus, program
from tests.real_server import RealServer
from tests.server.conftest import body, served

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARD = json.loads((FOLDER / "twogear.json").read_text())
RULES = [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
CHAT = "/v1/chat/completions"
THRESHOLD = re.compile(r"\s*(?:[<>]=?|[=!]=)\s*[\d.]+\s*$")
RARE = {"TwogearServerErrors"}  # alerts on what does not happen to a server that is well
MOST_ROUNDS = 200
"""Of load: a rate needs several scrapes, which come late on a busy machine."""


def expressions() -> Iterator[tuple[str, str]]:
    """All of them by name; those of alerts without their thresholds, those of panels for every mode and server."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "5m").replace('"$instance"', '".+"')
            for mode in ("standard", "reasoning") if "$mode" in expression else ("",):
                yield f"{panel['title']} {mode} {target['legendFormat']}", expression.replace("$mode", mode)
    for rule in RULES:
        yield rule["alert"], without_threshold(rule["expr"])


def without_threshold(expression: str) -> str:
    assert THRESHOLD.search(expression), expression
    return THRESHOLD.sub("", expression)


def without_data(prometheus: Prometheus) -> list[str]:
    """The names of the expressions that give nothing, or no number."""
    found = []
    for name, expression in expressions():
        values = [float(sample["value"][1]) for sample in prometheus.query(expression)]
        if not values or any(map(math.isnan, values)):
            found.append(f"{name}: {expression} gives {values}")
    return found


def test_the_rules_are_prometheus_own_check_passes() -> None:
    for command in (["check", "rules", "alerts.yaml"], ["check", "config", "prometheus.yaml"]):
        done = subprocess.run([program("promtool"), *command], cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_say_what_happened_and_how_bad_it_is() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    page = (FOLDER.parents[1] / "docs" / "observability.md").read_text()
    for rule in RULES:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert f"`{rule['alert']}`" in page


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert taken.setdefault(cell, panel["title"]) == panel["title"]
            assert cell[0] < 24
        assert panel["type"] == "row" or panel["description"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


async def ask(http: httpx.AsyncClient) -> None:
    """One request of each kind: both modes, a bad one, one whose client leaves."""
    await http.post(CHAT, json=body(max_tokens=20))
    await http.post(CHAT, json=body(reasoning_mode="reasoning", max_tokens=60, thinking_token_budget=20))
    await http.post(CHAT, json=body(reasoning_mode="none such"))
    async with http.stream("POST", CHAT, json=body(stream=True, max_tokens=200, ignore_eos=True)) as response:
        async for _ in response.aiter_bytes():
            break


@asynccontextmanager
async def scripted(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> AsyncIterator[str]:
    """The URL of a server around a scripted engine, over real connections."""
    async with served(engine, profile, fmt, Settings()) as (_, port):
        yield f"http://127.0.0.1:{port}"


@asynccontextmanager
async def scraping(url: str, folder: Path) -> AsyncIterator[Prometheus]:
    """Prometheus, while the server in this process goes on."""
    prometheus = Prometheus(url, folder)
    await asyncio.to_thread(prometheus.__enter__)
    try:
        yield prometheus
    finally:
        await asyncio.to_thread(prometheus.stop)


async def test_every_expression_has_data_under_load(profile: Profile, fmt: ChatFormat, tmp_path: Path) -> None:
    answer = [*fmt.encode_text("forty two"), fmt.end_of_turn_id]
    thinking = [*fmt.encode_text("let me see"), *fmt.close_thinking()]
    engine = FakeEngine(
        lambda prompt: iter(thinking + answer if fmt.is_thinking_open(prompt) else answer),
        (fmt.end_of_turn_id,),
        step=lambda: asyncio.sleep(0.001),
    )
    engine.cached_tokens = 3
    groups = (PageGroup("sliding", 32, 3, 5, 8), PageGroup("global", 32, 7, 1, 8))
    async with (
        scripted(engine, profile, fmt) as url,
        httpx.AsyncClient(base_url=url) as http,
        scraping(url, tmp_path) as prometheus,
    ):
        for number in range(MOST_ROUNDS):
            steps = tuple(number * n for n in range(len(STEP_TOKENS) + 1))
            engine.stats = Stats(2, 1, groups, number, steps, 1000 * number)
            await ask(http)
            engine.fail_after = 1
            await http.post(CHAT, json=body())
            engine.fail_after = None
            engine.status = EngineStatus("loading", "", 0.5)
            await http.post(CHAT, json=body())
            engine.status = EngineStatus("ready", "", 1.0)
            await asyncio.sleep(SCRAPE_SECONDS)
            missing = await asyncio.to_thread(without_data, prometheus)
            if not missing:
                break
    assert not missing


@pytest.mark.engine
def test_every_expression_has_data_with_the_real_engine(real_server: RealServer, tmp_path: Path) -> None:
    async def round_of_load() -> None:
        async with httpx.AsyncClient(base_url=real_server.url, timeout=240) as http:
            await ask(http)
            await asyncio.sleep(SCRAPE_SECONDS)

    with Prometheus(real_server.url, tmp_path) as prometheus:
        for _ in range(MOST_ROUNDS):
            asyncio.run(round_of_load())
            missing = [one for one in without_data(prometheus) if one.partition(":")[0] not in RARE]
            if not missing:
                break
    assert not missing

"""The two loads of overload, tiny, on a server with a scripted engine: their figures add up."""

import asyncio
import os

import pytest

from benchmarks import many_at_once, short_beside_thinkers
from benchmarks.load.accounting import Sample
from benchmarks.load.workload import Prompts
from benchmarks.short_beside_thinkers import Load
from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.fake_engine import FakeEngine
from tests.scripted_server import serving


def load_of(url: str) -> Load:
    return Load(url.removesuffix("/v1"), "twogear-tiny", Prompts(EMBEDDED_MODEL))


@pytest.fixture
def engine() -> FakeEngine:
    fmt = ChatFormat.from_folder(EMBEDDED_MODEL)
    ids = fmt.encode_text(" and")
    return FakeEngine(lambda _: iter(ids * 1000), (), max_num_seqs=8, step=lambda: asyncio.sleep(0.0005))


def test_short_requests_beside_thinkers(engine: FakeEngine) -> None:
    app = create_app(
        engine, Settings(), load_profile(PROFILE_FOLDER / "exaone4.toml"), ChatFormat.from_folder(EMBEDDED_MODEL)
    )
    with serving(app) as url:
        figures = asyncio.run(short_beside_thinkers.measure(load_of(url), "ours", 20, 1.0))
    assert (figures.failed, figures.thinkers) == (0, 20)
    assert 0 < figures.loaded_p50 <= figures.loaded_p95 <= figures.loaded_worst
    assert figures.allowed == 2 * figures.alone_p95 + figures.step > figures.alone_p95
    assert figures.thinking_alone > 0
    assert figures.kept == figures.thinking_loaded / figures.thinking_alone


def test_many_at_once(engine: FakeEngine) -> None:
    engine.step = lambda: asyncio.sleep(0.05)  # longer than all requests take to come
    settings = Settings(max_waiting=16)
    app = create_app(
        engine, settings, load_profile(PROFILE_FOLDER / "exaone4.toml"), ChatFormat.from_folder(EMBEDDED_MODEL)
    )
    with serving(app) as url:
        figures = asyncio.run(many_at_once.measure(load_of(url), 100, 60, os.getpid()))
    assert set(figures.ends) == {"answered", "503"}
    assert sum(figures.ends.values()) == figures.requests == 100
    assert figures.ends["answered"] >= 8
    assert figures.median <= figures.p95 <= figures.longest
    assert figures.memory_before is not None
    assert figures.memory_most is not None
    assert 0 < figures.memory_before <= figures.memory_most


def test_tokens_are_counted_in_the_time_in_which_they_came() -> None:
    sample = Sample(
        thinks=True, started=0, first=10, first_answer=None, ended=20, prompt_tokens=1, cached_tokens=0,
        completion_tokens=101, events=1,
    )  # fmt: skip
    assert short_beside_thinkers._tokens([sample], 0, 30) == 101
    assert short_beside_thinkers._tokens([sample, sample], 5, 15) == pytest.approx(101)
    assert short_beside_thinkers._step([sample], 0, 30) == pytest.approx(0.1)

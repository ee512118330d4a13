"""Which fast paths an engine takes: the table, the README and the code say the same, and no half goes without another.

A release of vLLM that moves a private name fails here by that name; an engine loses the path, and nothing else.
"""

import ast
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engine.defaults import Choice
from engine.messages import PROTOCOL_VERSION, FastPathStatus, Ready, SamplingLimits
from engine.vllm_internals.attach import attach
from engine.vllm_internals.contract import (
    DEMAND_ZERO,
    DIRECT_OUTPUTS,
    EXTENSION,
    FAST_PATHS,
    MULTI_STEP,
    OPTIONS,
    PAGE_COUNTS,
    RECOVERY,
    SAMPLER,
    SEEDS,
    WORKER,
    possible,
)
from model_impl import cpu
from model_impl.private_names import FastPath, PrivateName, Verdict, missing
from server.engine_supervisor import EngineSupervisor
from server.process_engine_client import ProcessEngineClient

pytestmark = pytest.mark.usefixtures("vllm_ignoring_warnings")

ROOT = Path(__file__).parents[2]
FOLDERS = ("engine/vllm_internals", "model_impl/cpu")
README = (ROOT / "engine" / "vllm_internals" / "README.md").read_text()
DOCUMENTED = {"vllm.sampling_params.SamplingParams"}
"""Imported by the files that reach inside, without being private."""
ON = Verdict(True, "fits")


def needs() -> set[PrivateName]:
    return {needed for path in FAST_PATHS for needed in path.needs} | set(WORKER)


@pytest.mark.parametrize("path", [*FAST_PATHS, FastPath("worker", WORKER)], ids=lambda path: path.name)
def test_the_installed_release_has_every_name(path: FastPath) -> None:
    assert missing(path.needs) is None


def imports(folder: str) -> Iterator[str]:
    """The dotted names that the files of a folder import from vLLM."""
    for path in (ROOT / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "vllm")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_name_that_is_imported_is_in_the_table(folder: str) -> None:
    table = {needed.dotted for needed in needs()}
    found = set(imports(folder)) - DOCUMENTED
    assert found
    assert not [name for name in found if not any(f"{one}.".startswith(f"{name}.") for one in table)]


@pytest.mark.parametrize("path", FAST_PATHS, ids=lambda path: path.name)
def test_the_readme_has_the_paths_table(path: FastPath) -> None:
    section = README.partition(f"\n## {path.name}\n")[2].partition("\n## ")[0]
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `([^`]+)` \| (.*?) \| (.+?) \|$", section, re.MULTILINE)}
    expected: dict[str, set[str]] = {}
    for needed in path.needs:
        expected.setdefault(needed.dotted, set()).update(needed.attributes)
    assert {name: set(re.findall(r"`([^`]+)`", of_it)) for name, (of_it, _) in rows.items()} == expected
    files, _, tests = section.partition("Test")
    folders = (ROOT / "engine" / "vllm_internals", ROOT)
    named = re.findall(r"`([\w/]+\.py)`", files)
    assert named
    assert all(any((folder / name).exists() for folder in folders) for name in named)
    assert all((ROOT / name).exists() for name in re.findall(r"`(tests/[\w/]+\.py)`", tests.partition("|")[0]))


def test_the_readme_has_no_path_that_is_not_there() -> None:
    sections = set(re.findall(r"^## (.+)$", README, re.MULTILINE))
    assert sections == {path.name for path in FAST_PATHS} | {"How a path is turned off"}
    assert all(f"`{needed.dotted}`" in README for needed in WORKER)


class _Thing:
    """Stands for a class of vLLM's."""

    declared: int

    def __init__(self) -> None:
        self.made = 1

    def method(self, first: int, second: int = 0) -> None:
        """Takes two."""


@pytest.fixture
def other_vllm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("vllm_of_a_test")
    module.__dict__["Thing"] = _Thing
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize(
    ("needed", "words"),
    [
        (PrivateName("vllm_of_a_test:Thing", ("made", "declared", "method")), None),
        (PrivateName("vllm_of_a_test:Thing.method", parameters=("self", "first")), None),
        (PrivateName("no_such_module:Thing"), "has no no_such_module.Thing"),
        (PrivateName("vllm_of_a_test:Other"), "has no vllm_of_a_test.Other"),
        (PrivateName("vllm_of_a_test:Thing", ("made", "gone")), "has no gone"),
        (
            PrivateName("vllm_of_a_test:Thing.method", parameters=("self", "other")),
            "takes .self, first.*not .self, o",
        ),
        (PrivateName("vllm_of_a_test:Thing.method", parameters=("self",)), "takes"),  # `first` has no default
    ],
)
def test_what_is_missing_is_told_by_name(other_vllm: ModuleType, needed: PrivateName, words: str | None) -> None:
    found = missing([needed])
    assert (found is None) == (words is None)
    assert re.search(words or "", found or "")


def test_our_classes_are_named_only_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = [Choice("--worker-cls", "ours", ""), Choice("--scheduler-cls", "ours", ""), Choice("--other", 1, "")]
    assert possible(defaults) == defaults
    monkeypatch.setitem(OPTIONS, "--worker-cls", (PrivateName("vllm.no_such_module:Worker"),))
    assert [choice.name for choice in possible(defaults)] == ["--scheduler-cls", "--other"]


class _Scheduler:
    """As much of ours as a handshake needs."""

    def __init__(self) -> None:
        self.enabled = False
        self.scheduler_config = SimpleNamespace(async_scheduling=False)

    def enable_multi_step(self) -> Verdict:
        self.enabled = True
        return ON


def fake_engine(reports: list[dict[str, Verdict]], scheduler: Any, *, in_process: bool = False) -> Any:
    """An LLMEngine's surface; without a core in this process nothing is read of its inside."""
    core = SimpleNamespace(scheduler=scheduler)
    config = SimpleNamespace(
        device_config=SimpleNamespace(device_type="cpu"),
        parallel_config=SimpleNamespace(worker_cls="someone.Worker", world_size=1),
    )
    return SimpleNamespace(
        engine_core=SimpleNamespace(engine_core=core) if in_process else SimpleNamespace(),
        vllm_config=config,
        collective_rpc=lambda _: reports,
        has_unfinished_requests=lambda: True,
        get_num_unfinished_requests=lambda: 3,
    )


def statuses(engine: Any) -> dict[str, FastPathStatus]:
    return {status.name: status for status in attach(engine).fast_paths}


@pytest.fixture
def without_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Page counts, extensions, recovery and direct outputs stand on names that this vLLM lacks."""
    absent = (PrivateName("vllm.no_such_module:Thing"),)
    monkeypatch.setattr("engine.vllm_internals.attach.PAGE_COUNTS", PAGE_COUNTS._replace(needs=absent))
    monkeypatch.setattr("engine.vllm_internals.attach.EXTENSION", EXTENSION._replace(needs=absent))
    monkeypatch.setattr("engine.vllm_internals.attach.RECOVERY", RECOVERY._replace(needs=absent))
    monkeypatch.setattr("engine.vllm_internals.attach.DIRECT_OUTPUTS", DIRECT_OUTPUTS._replace(needs=absent))


@pytest.mark.usefixtures("without_inside")
@pytest.mark.parametrize(
    ("reports", "enabled"),
    [
        ([{MULTI_STEP.name: ON}], True),
        ([{MULTI_STEP.name: ON}] * 2, True),
        ([{}], False),
        ([{MULTI_STEP.name: ON}, {}], False),
        ([{MULTI_STEP.name: Verdict(False, "cannot")}], False),
    ],
)
def test_the_scheduler_is_told_only_what_every_worker_confirms(reports: Any, enabled: bool) -> None:
    scheduler = _Scheduler()
    status = statuses(fake_engine(reports, scheduler, in_process=True))[MULTI_STEP.name]
    assert (scheduler.enabled, status.on) == (enabled, enabled)
    assert status.reason


@pytest.mark.usefixtures("without_inside")
def test_what_takes_a_paths_place_uses_the_documented_interface() -> None:
    internals = attach(fake_engine([{}], _Scheduler(), in_process=True))
    assert (internals.pages.has_work(), internals.pages.requests(), internals.pages.count()) == (True, (3, 0), ())
    sampling: Any = None
    assert not internals.extender.extend("id", sampling, sampling)
    off = {status.name: status for status in internals.fast_paths}
    for path in (PAGE_COUNTS, EXTENSION, DIRECT_OUTPUTS):
        assert (off[path.name].on, off[path.name].unexpected) == (False, True)
        assert "vllm.no_such_module.Thing" in off[path.name].reason


def test_an_engine_in_another_process_loses_what_is_read_from_this_one() -> None:
    found = statuses(fake_engine([{MULTI_STEP.name: ON, SAMPLER.name: ON}], None))
    assert found[SAMPLER.name].on
    for path in (MULTI_STEP, PAGE_COUNTS, EXTENSION):
        assert not found[path.name].on
        assert "a process of its own" in found[path.name].reason


def test_a_worker_of_the_users_is_named() -> None:
    found = statuses(fake_engine([{cpu.PACKED.name: ON}], None))
    assert (found[SAMPLER.name].on, found[SAMPLER.name].unexpected) == (False, False)
    assert "someone.Worker" in found[SAMPLER.name].reason
    assert found[cpu.PACKED.name].on  # the model's own
    assert found[cpu.PREFILL.name].reason == "the model does not ask for it"


def test_another_runner_class_turns_its_paths_off_as_a_surprise() -> None:
    from engine.vllm_internals.cpu_worker import take_over

    verdicts = take_over(_Thing())
    assert set(verdicts) == {SAMPLER.name, SEEDS.name, MULTI_STEP.name}
    assert all(not verdict.on and verdict.unexpected and "_Thing" in verdict.reason for verdict in verdicts.values())


def test_every_path_is_reported_in_the_tables_order() -> None:
    assert list(statuses(fake_engine([{}], None))) == [path.name for path in FAST_PATHS]


def test_every_fast_path_is_logged_and_a_surprise_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    paths = (
        FastPathStatus("sampler", on=True, reason="fits"),
        FastPathStatus("page counts", on=False, reason="by choice"),
        FastPathStatus("multi-step decoding", on=False, reason="vLLM 9 has no Scheduler", unexpected=True),
    )
    with caplog.at_level(logging.INFO, logger="twogear.engine"):
        supervisor = EngineSupervisor(ProcessEngineClient("model"), (), {}, most_seconds=1.0)
        supervisor.on_message(Ready(PROTOCOL_VERSION, "9", "Model", 100, 8, (1,), (), paths))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "sampler: on (fits)"),
        ("INFO", "page counts: off (by choice)"),
        ("WARNING", "multi-step decoding: off (vLLM 9 has no Scheduler)"),
    ]


@pytest.mark.engine
def test_an_engine_without_one_name_has_the_other_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multi-step decoding needs one more name here, which vLLM does not have."""
    from tests.model_impl.config_fields import fields
    from tests.model_impl.engines import SamplingParams, engine
    from tests.model_impl.tiny import save_checkpoint

    save_checkpoint(tmp_path, fields())
    monkeypatch.setenv("TWOGEAR_MULTI_STEP_MS", "10000")
    absent = MULTI_STEP._replace(needs=(*MULTI_STEP.needs, PrivateName("vllm.no_such_module:Thing")))
    monkeypatch.setattr("engine.vllm_internals.cpu_worker.MULTI_STEP", absent)
    # An engine that was told of our scheduler all the same: it must not ask the worker for what that cannot do.
    options: dict[str, Any] = {
        "worker_cls": "engine.vllm_internals.cpu_worker.TwogearCPUWorker",
        "scheduler_cls": "engine.vllm_internals.scheduler.MultiStepScheduler",
        "kv_cache_memory_bytes": 64 << 20,
    }
    with engine(tmp_path, **options) as llm:
        found = statuses(llm.llm_engine)
        assert "vllm.no_such_module.Thing" in found[MULTI_STEP.name].reason
        assert found[MULTI_STEP.name].unexpected
        assert all(found[path.name].on for path in (SAMPLER, SEEDS, PAGE_COUNTS, EXTENSION, DEMAND_ZERO))
        params = SamplingParams(temperature=0.7, seed=1, max_tokens=9, ignore_eos=True, detokenize=False)
        prompts: Any = [{"prompt_token_ids": [5, 6, 7]}]
        (output,) = llm.generate(prompts, params, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 9


def test_the_limits_are_the_installed_releases_and_asked_of_its_v2_runner_alone() -> None:
    from tests.server.test_sampling_limits import LIMITS as KNOWN

    def engine_with(v2: bool) -> Any:
        engine = fake_engine([{}], None)
        engine.vllm_config.use_v2_model_runner = v2
        return engine

    assert attach(engine_with(v2=True)).limits == KNOWN
    assert attach(engine_with(v2=False)).limits == SamplingLimits()

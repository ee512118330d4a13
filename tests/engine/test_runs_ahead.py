"""Budgets on vLLM's real V1 runner: under a scheduler that waits for tokens, one that runs ahead, and with n-grams.

On a GPU vLLM's scheduler runs a step ahead; on CPUs vLLM turns that off. Here it is turned on again when the runner has
been made, which computes every step when it is asked to. So the scheduler knows no more than on a GPU.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from engine.messages import Continuation, Generate, Sampling
from engine.vllm_internals.attach import Internals, attach
from engine.vllm_internals.contract import AHEAD_PATHS
from tests.engine.test_ahead_scheduler import Counting, NoExtender, Recorder, budgets_spent, by_request
from tests.engine.test_model_runner import prompt
from tests.engine.test_speculation import SPECULATION
from tests.model_impl.config_fields import fields
from tests.model_impl.engines import engine
from tests.model_impl.tiny import save_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("vllm_ignoring_warnings")]
STOP, NEVER = 9, 99999


class RunsAhead(UniProcExecutor):
    """Has the scheduler, which is made after the runner, run ahead of it."""

    def initialize_from_config(self, kv_cache_configs: list[Any]) -> None:
        super().initialize_from_config(kv_cache_configs)
        self.vllm_config.scheduler_config.async_scheduling = True

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return True


WAYS: dict[str, dict[str, Any]] = {
    "waits": {},
    "runs ahead": {"distributed_executor_backend": RunsAhead},
    "n-grams": {"speculative_config": SPECULATION},
}


def asked() -> Iterator[Generate]:
    """Prompts whose n-grams come again; budgets of 0 to 40 tokens."""
    for number in range(48):
        ids = prompt(5 + number, seed=number) * 2
        second = Sampling(max_tokens=1 + number % 30, stop_token_ids=(STOP,))
        then = Continuation(number % 41, NEVER, (11, 12, 13), second)
        yield Generate(f"b{number}", ids, Sampling(max_tokens=120, stop_token_ids=(STOP,)), 0, then)


def told(llm: Any, internals: Internals, extender: Any) -> tuple[dict[str, list[Any]], int]:
    """What becomes of all of them at once, and the most tokens that came of one at a time."""
    from engine.loop import EngineLoop

    recorder = Recorder()
    loop = EngineLoop(llm.llm_engine, internals._replace(extender=extender), (STOP,), cast("Any", recorder))
    recorder.steps.append([])
    for request in asked():
        loop._handle(request)
    while internals.pages.has_work():
        recorder.steps.append([])
        loop._step()
    most = max(len(delta.token_ids) for step in recorder.steps for delta in step)
    return by_request(recorder.steps), most


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, fields())
    return folder


@pytest.fixture(scope="module")
def expected(checkpoint: Path) -> dict[str, list[Any]]:
    """Where every request that has spent its budget is ended and added again."""
    with engine(checkpoint, max_num_seqs=16, enable_prefix_caching=True) as llm:
        found, most = told(llm, attach(llm.llm_engine), NoExtender())
    assert most == 1
    assert budgets_spent(found) > 20
    return found


@pytest.mark.parametrize("way", WAYS)
def test_budgets_are_the_same_and_extended_in_place(checkpoint: Path, expected: dict[str, list[Any]], way: str) -> None:
    with engine(checkpoint, max_num_seqs=16, enable_prefix_caching=True, **WAYS[way]) as llm:
        ours = attach(llm.llm_engine)
        on = [status.on for status in ours.fast_paths if status.name in {path.name for path in AHEAD_PATHS}]
        assert on == [way == "runs ahead"] * len(AHEAD_PATHS)
        counting = Counting(ours.extender)
        for extender in (counting, NoExtender()):
            found, most = told(llm, ours, extender)
            assert found == expected
            assert (most > 1) == (way == "n-grams")
            assert llm.llm_engine.reset_prefix_cache()  # no page is held
    assert counting.extended > 20 > counting.refused

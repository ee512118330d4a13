"""Several steps for one round of scheduling: the same tokens as step by step, whatever the requests ask for."""

import itertools
import random
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from engine.vllm_internals.attach import attach
from engine.vllm_internals.contract import MULTI_STEP
from model_impl.cpu.native import kernels
from tests.model_impl.config_fields import fields
from tests.model_impl.engines import PAGE, SamplingParams, engine
from tests.model_impl.tiny import save_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

VOCABULARY = 101
CONTEXT = 512
CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "ends within several steps": {"max_tokens": 21},
    "one token": {"max_tokens": 1},
    "two tokens": {"max_tokens": 2},
    "to the end of the context": {"max_tokens": CONTEXT},
    "seeded": {"temperature": 1.0, "seed": 5},
    "seeded, with limits": {"temperature": 1.3, "seed": 6, "top_p": 0.9, "top_k": 20, "min_p": 0.01},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "logprobs": {"logprobs": 3},
    "logprobs of a seeded one": {"temperature": 1.0, "seed": 7, "logprobs": 1},
    "least length": {"min_tokens": 30, "logit_bias": {9: 4.0}, "stop_token_ids": [9]},
    "a stop token": {"temperature": 1.0, "seed": 8, "stop_token_ids": list(range(0, 101, 12))},
    "prompt logprobs": {"prompt_logprobs": 1, "max_tokens": 5},
}


class Outcome(NamedTuple):
    ids: list[int]
    logprobs: list[dict[int, float]]
    finish: str
    sizes: list[int]
    """How many tokens came at once, one time after the other."""
    cached: int
    began: int
    """In which of the server's steps the first token came."""


class Server:
    """An engine that is stepped by hand."""

    def __init__(self, llm: Any) -> None:
        self._engine = llm.llm_engine
        self._asked = self.steps = 0
        self._began: dict[str, int] = {}  # in which step a request's first token came

    def run(
        self, requests: list[tuple[list[int], dict[str, Any]]], *, apart: int = 0, priorities: Iterable[int] = ()
    ) -> list[Outcome]:
        """The outcomes in order; each request comes `apart` rounds after the one before."""
        priority = iter(priorities)
        names: list[str] = []
        outputs: dict[str, list[Any]] = {}
        for ids, sampling in requests:
            names.append(f"{self._asked}")
            self._asked += 1
            outputs[names[-1]] = []
            params: dict[str, Any] = {"temperature": 0.0, "max_tokens": 60, "detokenize": False} | sampling
            params.setdefault("ignore_eos", "stop_token_ids" not in params)
            params["output_kind"] = RequestOutputKind.DELTA
            self._engine.add_request(names[-1], tokens_input(ids), SamplingParams(**params), priority=next(priority, 0))
            for _ in range(apart):
                self._step(outputs)
        while self._engine.has_unfinished_requests():
            self._step(outputs)
        self._engine.step()  # the worker hears that the last one has ended
        return [_outcome(outputs[name], self._began[name]) for name in names]

    def _step(self, outputs: dict[str, list[Any]]) -> None:
        for output in self._engine.step():
            outputs[output.request_id].append(output)
        self.steps += 1
        for name, parts in outputs.items():
            if parts and name not in self._began:
                self._began[name] = self.steps

    def free_pages(self) -> int:
        return int(self._engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def _outcome(outputs: list[Any], began: int) -> Outcome:
    parts = [output.outputs[0] for output in outputs]
    entries = [entry for part in parts for entry in part.logprobs or ()]
    return Outcome(
        [i for part in parts for i in part.token_ids],
        [{i: one.logprob for i, one in entry.items()} for entry in entries],
        parts[-1].finish_reason,
        [len(part.token_ids) for part in parts],
        outputs[0].num_cached_tokens or 0,
        began,
    )


def prompt(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, VOCABULARY) for _ in range(length)]


def options_of(numbers: str) -> dict[str, Any]:
    """`numbers`: of weights and pages, or `fp8`, which is bfloat16 with pages of bytes."""
    return {
        "dtype": "bfloat16" if numbers == "fp8" else numbers,
        "kv_cache_dtype": numbers if numbers == "fp8" else "auto",
        "worker_cls": "engine.vllm_internals.cpu_worker.TwogearCPUWorker",
        "scheduler_cls": "engine.vllm_internals.scheduler.MultiStepScheduler",
        "max_model_len": CONTEXT,
        "max_num_seqs": 16,
        "enable_prefix_caching": True,
    }


def all_outcomes(
    folder: Path, numbers: str, milliseconds: int, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[Outcome]]:
    """What an engine makes of everything that the tests below look at."""
    monkeypatch.setenv("TWOGEAR_MULTI_STEP_MS", str(milliseconds))
    questions = [prompt(20 + 7 * number, number) for number in range(len(CASES))]
    found = {}
    with engine(folder, **options_of(numbers)) as llm:
        (status,) = [path for path in attach(llm.llm_engine).fast_paths if path.name == MULTI_STEP.name]
        assert status.on == (milliseconds > 0), status
        server = Server(llm)
        pages = server.free_pages()
        for case, question in zip(CASES, questions, strict=True):
            found[case] = server.run([(question, CASES[case])])
        found["all together"] = server.run(list(zip(questions, CASES.values(), strict=True)))
        found["one after another"] = server.run(list(zip(questions, CASES.values(), strict=True)), apart=2)
        first = server.run([(prompt(3 * PAGE, 99), {"max_tokens": 3 * PAGE})])
        found["follow-up"] = server.run([([*prompt(3 * PAGE, 99), *first[0].ids], {})])
        assert server.free_pages() == pages
    return found


@pytest.fixture(scope="module", params=["float32", "bfloat16", "fp8"])  # by vLLM's attention, and by native steps
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[dict[str, list[Outcome]], dict[str, list[Outcome]]]:
    """With several steps at once, and with single ones."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, fields(), torch.float32 if request.param == "float32" else torch.bfloat16)
    with pytest.MonkeyPatch.context() as monkeypatch:
        several, single = (all_outcomes(folder, request.param, most, monkeypatch) for most in (10_000, 0))
        return several, single


@pytest.mark.engine
@pytest.mark.parametrize("case", [*CASES, "all together", "one after another", "follow-up"])
def test_several_steps_draw_what_single_steps_draw(outcomes: Any, case: str, request: pytest.FixtureRequest) -> None:
    if case == "one after another" and "float32" not in request.node.name and kernels() is None:
        # Requests come at other times beside several steps than beside single ones, so that batches differ.
        pytest.skip("no kernels of ours on this CPU: vLLM's bfloat16 products depend on what else is in a batch")
    for several, single in zip(outcomes[0][case], outcomes[1][case], strict=True):
        assert several.ids == single.ids
        assert (several.finish, several.cached) == (single.finish, single.cached)
        assert len(several.logprobs) == len(single.logprobs)
        for one, other in zip(several.logprobs, single.logprobs, strict=True):
            assert one == pytest.approx(other, abs=1e-3)
        assert max(single.sizes) == 1


@pytest.mark.engine
def test_what_waits_ends_the_steps_early_and_changes_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, fields(), torch.float32)
    monkeypatch.setenv("TWOGEAR_MULTI_STEP_MS", "10000")
    looks = itertools.count()
    with engine(tmp_path, **options_of("float32")) as llm:
        server = Server(llm)
        attach(llm.llm_engine, lambda: next(looks) % 3 == 2)
        ((several,), (calm,)) = (server.run([(prompt(20, 0), {})]) for _ in range(2))
        attach(llm.llm_engine, lambda: False)
        (free,) = server.run([(prompt(20, 0), {})])
    assert several.ids == calm.ids == free.ids
    assert max(several.sizes) <= 4 < max(free.sizes)


@pytest.mark.engine
def test_tokens_come_several_at_a_time_and_none_too_many(outcomes: Any) -> None:
    (alone,) = outcomes[0]["greedy"]
    assert max(alone.sizes) > 1
    assert alone.sizes[:2] == [1, 1], "the second token does not wait for others"
    assert len(alone.ids) == 60
    (long,) = outcomes[0]["to the end of the context"]
    asked = len(prompt(20 + 7 * list(CASES).index("to the end of the context"), 0))
    assert (len(long.ids), long.finish) == (CONTEXT - asked, "length")


@pytest.mark.engine
def test_prompts_computed_beside_change_nothing(outcomes: Any) -> None:
    for answers in outcomes:
        for together, apart in zip(answers["all together"], answers["one after another"], strict=True):
            assert together.ids == apart.ids


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An engine whose steps may have 256 tokens."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, fields(), torch.float32)
    options = options_of("float32") | {"max_num_batched_tokens": 256, "scheduling_policy": "priority"}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TWOGEAR_MULTI_STEP_MS", "10000")
        with engine(folder, **options) as llm:
            attach(llm.llm_engine)
            yield Server(llm)


@pytest.mark.engine
@pytest.mark.parametrize("longs", [1, 2])
def test_a_short_prompt_is_read_beside_long_ones(rounds: Server, longs: int) -> None:
    questions = [*(prompt(490, 20 * longs + number) for number in range(longs)), prompt(20, 30)]
    *long, short = rounds.run([(question, {"max_tokens": 4}) for question in questions], apart=1)
    assert short.began < min(one.began for one in long), "it waited for all of a long prompt"
    for one, question in zip([*long, short], questions, strict=True):
        (alone,) = rounds.run([(question, {"max_tokens": 4})])
        assert one.ids == alone.ids


@pytest.mark.engine
def test_a_prompt_alone_is_read_in_as_few_steps_as_can_be(rounds: Server) -> None:
    rounds.run([(prompt(20, 31), {"max_tokens": 1})])
    before = rounds.steps
    rounds.run([(prompt(490, 32), {"max_tokens": 1})])
    assert rounds.steps == before + 2


@pytest.mark.engine
def test_the_second_token_of_one_that_goes_before_others_waits_for_a_single_step(rounds: Server) -> None:
    running = [(prompt(20, 40 + number), {"max_tokens": 60}) for number in range(8)]
    *others, newcomer = rounds.run([*running, (prompt(20, 50), {})], apart=1, priorities=[2] * 8 + [0])
    assert newcomer.sizes[:2] == [1, 1]
    assert max(newcomer.sizes) > 1
    assert max(size for one in others for size in one.sizes) > 1

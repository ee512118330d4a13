"""What the engine's loop uses of vLLM's inside, for an engine that is loaded and warm, and what became of each path.

Here the halves of a path meet: the workers say what they can do, and only then the scheduler asks it of them. Where a
path is off, what takes its place uses vLLM's documented interface alone. Imports nothing of vLLM itself.
"""

import faulthandler
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

from engine import DUMP_SIGNAL
from engine.defaults import KV_CACHE_TOKENS
from engine.messages import Continuation, FastPathStatus, PageGroup, PageNeed, Sampling, SamplingLimits
from engine.vllm_internals.contract import (
    AHEAD_PATHS,
    DIRECT_OUTPUTS,
    EXTENSION,
    FAST_PATHS,
    FEWER_COPIES,
    JIT_MONITOR,
    LIMITS,
    MULTI_STEP,
    ONE_TOKENIZER,
    PAGE_COUNTS,
    POOL_SIZE,
    PROMPT_PARTS,
    RECOVERY,
    WORKER,
    WORKER_PATHS,
)
from engine.vllm_internals.steps import DirectSteps, Outputs, PlainSteps
from model_impl import cpu
from model_impl.private_names import Verdict, missing, verdict_of_names

_NOT_ASKED_FOR = Verdict(False, "the model does not ask for it")
_IN_ANOTHER_PROCESS = Verdict(False, "vLLM's engine runs in a process of its own")


class Pages(Protocol):
    """What is read of an engine's scheduler and KV cache: `page_counter.PageCounter`."""

    def has_work(self) -> bool:
        """Whether a step would do anything."""

    def requests(self) -> tuple[int, int]:
        """How many requests run and how many wait."""

    def progress(self) -> object:
        """What differs from that of another step if a request has got on, or if that cannot be told."""

    def preemptions(self) -> int:
        """How often a request has lost its pages to others; 0 where that is not told."""

    def count(self) -> tuple[PageGroup, ...]:
        """Pages by kind; nothing where they cannot be counted."""

    def needs(self) -> tuple[PageNeed, ...]:
        """What a request takes of each group of layers; nothing where that cannot be told."""


class Extends(Protocol):
    """How a request goes on behind forced tokens: `continuation.Extender`."""

    def extend(self, request_id: str, sampling: Sampling, then: Continuation) -> bool:
        """Whether the request goes on as `then` says; where not, it has to be ended and added again."""

    def prioritize(self, request_id: str, priority: int) -> None:
        """Gives a request another priority, where that can be."""


class Recovers(Protocol):
    """How an engine goes on after a step that failed: `recovery.Recovery`. Requests by vLLM's own ids."""

    def can_recover(self, error: Exception) -> bool:
        """Whether it can."""

    def recover(self, error: Exception) -> list[str]:
        """Parks all requests; those that may be to blame."""

    def release(self, request_ids: Iterable[str]) -> None:
        """Has parked requests wait for their next step."""

    def parked(self) -> list[str]:
        """All that are parked."""


class Steps(Protocol):
    """How a step is made and its outputs are had: `steps.DirectSteps`."""

    def step(self) -> Outputs:
        """One step of the engine."""


class Internals(NamedTuple):
    """All of vLLM's inside that the loop uses. `fast_paths`: in the order of the contract's table."""

    pages: Pages
    extender: Extends
    recovery: Recovers
    steps: Steps
    fast_paths: tuple[FastPathStatus, ...]
    limits: SamplingLimits = SamplingLimits()


def attach(engine: Any, interrupted: Callable[[], bool] | None = None) -> Internals:
    """For vLLM's LLMEngine, once it has computed a request of each kind: a model knows only then what it can take.

    `interrupted` is asked between several steps at once, which end when it is so.
    """
    core = getattr(engine.engine_core, "engine_core", None)  # InprocClient → EngineCore
    verdicts = _of_workers(engine)
    verdicts[MULTI_STEP.name] = _multi_step(core, verdicts[MULTI_STEP.name])
    if verdicts[MULTI_STEP.name].on and interrupted is not None:
        engine.collective_rpc(_interrupt_by, args=(interrupted,))
    if engine.vllm_config.parallel_config.world_size > 1:
        engine.collective_rpc(_write_stacks_on_signal)
    pages, verdicts[PAGE_COUNTS.name] = _pages(engine, core)
    extender, verdicts[EXTENSION.name] = _extender(core)
    recovery, verdicts[RECOVERY.name] = _recovery(engine, core)
    limits, verdicts[LIMITS.name] = _limits(engine)
    verdicts[FEWER_COPIES.name] = _fewer_copies(engine)
    verdicts[POOL_SIZE.name] = _pool_size(engine)
    verdicts[ONE_TOKENIZER.name] = verdict_of_names(ONE_TOKENIZER) or Verdict(True, "prompts come as tokens")
    verdicts[JIT_MONITOR.name] = _jit_monitor(engine)
    verdicts[PROMPT_PARTS.name] = _prompt_parts(core)
    verdicts |= _ahead(core)
    steps, verdicts[DIRECT_OUTPUTS.name] = _steps(engine, core)
    return Internals(pages, extender, recovery, steps, tuple(_statuses(verdicts)), limits)


def end_workers(engine: Any) -> None:
    """Ends worker processes, where there are any: what is in this process ends with it, and at once."""
    if engine.vllm_config.parallel_config.world_size > 1:
        engine.engine_core.shutdown()


def report(worker: Any) -> dict[str, Verdict]:
    """Runs in a worker process, with vLLM's worker or what wraps it: what it says if it is ours, and its model."""
    fast_paths = getattr(worker, "fast_paths", dict)
    return fast_paths() | cpu.verdicts()


def _write_stacks_on_signal(worker: Any) -> None:  # noqa: ARG001 - vLLM's signature
    """Runs in a worker process: it writes its stacks when the engine hangs, as the engine does."""
    faulthandler.register(DUMP_SIGNAL)


def _interrupt_by(worker: Any, interrupted: Callable[[], bool]) -> None:
    """Runs in this process, where several steps are computed: with vLLM's worker or what wraps it."""
    getattr(worker, "worker", worker).model_runner.interrupted = interrupted


def _of_workers(engine: Any) -> dict[str, Verdict]:
    """What the workers say of their paths and their model's; a path is on if it is in every one of them."""
    reports: list[dict[str, Verdict]] = engine.collective_rpc(report)
    another = _why_not_ours(engine.vllm_config)
    untold = dict.fromkeys((*WORKER_PATHS, MULTI_STEP), another) | dict.fromkeys(cpu.FAST_PATHS, _NOT_ASKED_FOR)
    verdicts = {}
    for path, otherwise in untold.items():
        told = [one.get(path.name, otherwise) for one in reports]
        verdicts[path.name] = next((verdict for verdict in told if not verdict.on), told[0])
    return verdicts


def _why_not_ours(config: Any) -> Verdict:
    if config.device_config.device_type != "cpu":
        return Verdict(False, "it is for CPUs")
    if (reason := missing(WORKER)) is not None:
        return Verdict(False, reason, unexpected=True)
    return Verdict(False, f"the engine runs with the worker {config.parallel_config.worker_cls}")


def _another_scheduler(scheduler: Any) -> Verdict:
    kind = type(scheduler)
    return Verdict(False, f"the engine runs with the scheduler {kind.__module__}.{kind.__qualname__}")


def _multi_step(core: Any, workers: Verdict) -> Verdict:
    """The two halves shake hands: the scheduler is told to only if all workers are ready."""
    if not workers.on:
        return workers
    if core is None:
        return _IN_ANOTHER_PROCESS
    enable = getattr(core.scheduler, "enable_multi_step", None)
    if enable is not None:
        verdict: Verdict = enable()
        return verdict
    return verdict_of_names(MULTI_STEP) or _another_scheduler(core.scheduler)


def _pages(engine: Any, core: Any) -> tuple[Pages, Verdict]:
    verdict = _IN_ANOTHER_PROCESS if core is None else verdict_of_names(PAGE_COUNTS)
    if verdict is not None:
        return _NoPages(engine), verdict
    from engine.vllm_internals.page_counter import PageCounter  # noqa: PLC0415 - stands on names that were checked

    return PageCounter(core), Verdict(True, "of each kind of page")


def _extender(core: Any) -> tuple[Extends, Verdict]:
    verdict = _IN_ANOTHER_PROCESS if core is None else verdict_of_names(EXTENSION)
    if verdict is not None:
        return _NoExtender(), verdict
    from engine.vllm_internals.continuation import Extender  # noqa: PLC0415 - stands on names that were checked

    extender = Extender(core)
    if extender.obstacle is not None:
        return extender, Verdict(False, extender.obstacle)
    return extender, Verdict(True, "requests keep their pages where their sampling stays the same")


def _recovery(engine: Any, core: Any) -> tuple[Recovers, Verdict]:
    verdict = _IN_ANOTHER_PROCESS if core is None else verdict_of_names(RECOVERY)
    if verdict is not None:
        return _NoRecovery(), verdict
    from engine.vllm_internals.recovery import Recovery  # noqa: PLC0415 - stands on names that were checked

    recovery = Recovery(engine, core)
    if recovery.obstacle is not None:
        return recovery, Verdict(False, recovery.obstacle)
    return recovery, Verdict(True, "a step that fails ends the request that is to blame, and no other")


def _limits(engine: Any) -> tuple[SamplingLimits, Verdict]:
    if not getattr(engine.vllm_config, "use_v2_model_runner", False):
        return SamplingLimits(), Verdict(False, "the model runner takes lists of any length")
    if (verdict := verdict_of_names(LIMITS)) is not None:
        return SamplingLimits(), verdict
    from engine.vllm_internals.runner_limits import v2_limits  # noqa: PLC0415 - stands on names that were checked

    return v2_limits(), Verdict(True, "longer lists than the runner has room for are refused before they reach it")


def _fewer_copies(engine: Any) -> Verdict:
    if not getattr(engine.vllm_config, "use_v2_model_runner", False):
        return Verdict(False, "the model runner copies what has changed")
    if (verdict := verdict_of_names(FEWER_COPIES)) is not None:
        return verdict
    from engine.vllm_internals.fewer_copies import take_over  # noqa: PLC0415 - stands on names that were checked

    obstacle = next(filter(None, engine.collective_rpc(take_over)), None)
    return Verdict(obstacle is None, obstacle or "in steps that bring a request")


def _prompt_parts(core: Any) -> Verdict:
    """Of a scheduler that does not run ahead."""
    if core is None:
        return _IN_ANOTHER_PROCESS
    verdict: Verdict | None = getattr(core.scheduler, "prompts_in_parts", None)
    return verdict or verdict_of_names(PROMPT_PARTS) or _another_scheduler(core.scheduler)


def _ahead(core: Any) -> dict[str, Verdict]:
    """What is shorter where the scheduler runs ahead."""
    needs = [needed for path in (*AHEAD_PATHS, PROMPT_PARTS) for needed in path.needs]
    if core is None:
        off = _IN_ANOTHER_PROCESS
    elif not core.scheduler.scheduler_config.async_scheduling:
        off = Verdict(False, "every step is scheduled when the last one's tokens are known")
    elif (reason := missing(needs)) is not None:
        off = Verdict(False, reason, unexpected=True)
    else:
        from engine.vllm_internals.ahead_scheduler import take_over  # noqa: PLC0415 - stands on names that were checked

        return take_over(core.scheduler)
    return dict.fromkeys((path.name for path in AHEAD_PATHS), off)


def _steps(engine: Any, core: Any) -> tuple[Steps, Verdict]:
    verdict = _IN_ANOTHER_PROCESS if core is None else verdict_of_names(DIRECT_OUTPUTS)
    if verdict is not None:
        return PlainSteps(engine), verdict
    direct = DirectSteps(engine)
    if direct.obstacle is not None:
        return PlainSteps(engine), Verdict(False, direct.obstacle)
    return direct, Verdict(True, "tokens from the middle of a request go past vLLM's output processor")


def _pool_size(engine: Any) -> Verdict:
    """`engine.loading` has limited it before there was an engine to attach to."""
    if engine.vllm_config.device_config.device_type == "cpu":
        return Verdict(False, "it is for GPUs")
    off = verdict_of_names(POOL_SIZE)
    return off or Verdict(True, f"at most as many tokens as {KV_CACHE_TOKENS} says, unless the options say how much")


def _jit_monitor(engine: Any) -> Verdict:
    """`engine.loading` has seen to it, and does again once all is warm."""
    if engine.vllm_config.device_config.device_type == "cpu":
        return Verdict(False, "it is for GPUs")
    return verdict_of_names(JIT_MONITOR) or Verdict(True, "none of them is an error, whatever --jit-monitor-mode says")


def _statuses(verdicts: dict[str, Verdict]) -> Iterator[FastPathStatus]:
    for path in FAST_PATHS:
        yield FastPathStatus(path.name, *verdicts[path.name])


class _NoPages:
    """Pages where vLLM's inside is not at hand, or another than is known: by the documented interface alone."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def has_work(self) -> bool:
        return bool(self._engine.has_unfinished_requests())

    def requests(self) -> tuple[int, int]:
        """Which of them wait is not told."""
        return self._engine.get_num_unfinished_requests(), 0

    def progress(self) -> object:
        """It cannot be told."""
        return object()

    def preemptions(self) -> int:
        return 0

    def count(self) -> tuple[PageGroup, ...]:
        return ()

    def needs(self) -> tuple[PageNeed, ...]:
        return ()


class _NoExtender:
    """Every request is ended and added again."""

    def extend(self, request_id: str, sampling: Sampling, then: Continuation) -> bool:  # noqa: ARG002
        return False

    def prioritize(self, request_id: str, priority: int) -> None:
        pass


class _NoRecovery:
    """Every step that fails ends the engine."""

    def can_recover(self, error: Exception) -> bool:  # noqa: ARG002
        return False

    def recover(self, error: Exception) -> list[str]:
        raise error

    def release(self, request_ids: Iterable[str]) -> None:
        pass

    def parked(self) -> list[str]:
        return []

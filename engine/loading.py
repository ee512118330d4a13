"""Brings vLLM's engine up: our defaults, the user's options over them, progress, and errors that say what to do.

The only file that imports vLLM's construction interface (EngineArgs, LLMEngine, Executor, ModelRegistry). Imported by
the engine process after `defaults` has been put into the environment: importing vLLM takes seconds and reads it.
"""

import argparse
import contextlib
import gc
import os
import secrets
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, cast

import msgspec
from vllm import __version__ as VLLM_VERSION
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import tokens_input
from vllm.model_executor.models import ModelRegistry
from vllm.plugins import load_general_plugins
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor

from engine.adapters import Adapters
from engine.checkpoint import ModelError, read_config
from engine.defaults import KV_CACHE_TOKENS, Choice, Machine, Nodes, named_options
from engine.follower import end_with_first_machine
from engine.messages import PROTOCOL_VERSION, Ready
from engine.ray_head import check_head
from engine.vllm_internals.attach import Internals
from engine.vllm_internals.contract import JIT_MONITOR, ONE_TOKENIZER, POOL_SIZE, possible
from engine.vllm_internals.jit_monitor import as_asked, only_told
from engine.vllm_internals.one_tokenizer import one_tokenizer
from engine.weights import advice
from model_impl.private_names import verdict_of_names

_LONGEST_REASON = 500
"""Characters; the log has the rest."""

Report = Callable[[str, float], None]
"""Called with a stage in words and the fraction of the start that lies behind, from 0 to 1."""

_READ_CONFIG, _LOAD_WEIGHTS, _MEASURE, _PAGES, _WARM_UP = 0.6, 0.65, 0.75, 0.85, 0.9
"""Fractions, by the seconds that each stage took for a small model on two cores."""


def load_engine(model: str, options: Sequence[str], defaults: Sequence[Choice], report: Report) -> LLMEngine:
    """The engine, warm, for `model` with vLLM's own `options`.

    Raises ModelError, one line, for whatever goes wrong: what fails here fails again with the same model, options and
    memory. Raises ConnectionError when nobody listens to `report`.
    """
    with _explained(model):
        return _load(model, options, defaults, report)


def load_workers(model: str, options: Sequence[str], defaults: Sequence[Choice], report: Report) -> Executor:
    """The workers of this machine, of an engine whose scheduler is on another (`Nodes`). Raises as `load_engine`."""
    with _explained(model):
        _, config = _configure(model, options, defaults, report)
        report("waiting for the first machine", _LOAD_WEIGHTS)
        end_with_first_machine((config.parallel_config.master_addr, config.parallel_config.master_port))
        workers: Executor = Executor.get_class(config)(config)
        return workers


@contextmanager
def _explained(model: str) -> Iterator[None]:
    try:
        yield
    except (ModelError, ConnectionError):
        raise
    except Exception as error:
        raise ModelError(_explain(error, model)) from error


def _load(model: str, options: Sequence[str], defaults: Sequence[Choice], report: Report) -> LLMEngine:
    arguments, config = _configure(model, options, defaults, report)
    several = config.parallel_config.nnodes > 1
    report("waiting for the other machines" if several else "loading the weights", _LOAD_WEIGHTS)
    gc.freeze()  # vLLM collects garbage several times while it loads, which need not go through all modules
    with (
        contextlib.nullcontext() if verdict_of_names(ONE_TOKENIZER) else one_tokenizer(),
        contextlib.nullcontext() if verdict_of_names(JIT_MONITOR) else only_told(config),
    ):
        engine = LLMEngine(
            vllm_config=config,
            executor_class=_reporting(Executor.get_class(config), report, _most_tokens(config)),
            log_stats=not arguments.disable_log_stats,
            usage_context=UsageContext.OPENAI_API_SERVER,
        )
    report("warming up", _WARM_UP)
    _warm_up(engine)
    if several and "--seed" not in named_options(options):
        engine.collective_rpc(cast("Any", _draw_anew), args=(_any_seed(),))
    return engine


def _configure(
    model: str, options: Sequence[str], defaults: Sequence[Choice], report: Report
) -> tuple[argparse.Namespace, Any]:
    """The arguments as vLLM has them, and its VllmConfig. Raises as `load_engine` does, and what vLLM raises."""
    report("reading the configuration", _READ_CONFIG)
    arguments = _parse(model, options, possible(defaults))
    cast("Callable[[], None]", load_general_plugins)()
    _import_model_class(model)
    if arguments.distributed_executor_backend == "ray":
        _join_ray()
    config = EngineArgs.from_cli_args(arguments).create_engine_config(UsageContext.OPENAI_API_SERVER)
    if config.parallel_config.data_parallel_size > 1:
        raise ModelError("an engine process is one replica; for several, say --data-parallel-size before --")
    return arguments, config


def _join_ray() -> None:
    """Joins the cluster that runs; vLLM would start one of its own where it finds none, and wait for GPUs in it."""
    try:
        import ray  # noqa: PLC0415 - optional
    except ImportError as error:
        raise ModelError("--distributed-executor-backend ray: Ray is not installed here (pip install ray)") from error
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        check_head(address)
        ray.init(address, log_to_driver=False)
    except Exception as error:  # Ray raises that itself
        raise ModelError(
            f"--distributed-executor-backend ray: {_essence(error)} (RAY_ADDRESS is {address!r})"
        ) from error


def _draw_anew(worker: Any, seed: int) -> None:  # noqa: ARG001 - vLLM's signature
    """Runs in every worker: the random numbers of requests without a seed of their own begin here."""
    from vllm.utils.torch_utils import set_random_seed  # noqa: PLC0415

    set_random_seed(seed)


def _any_seed() -> int:
    return secrets.randbits(31)


def describe(engine: LLMEngine, internals: Internals) -> Ready:
    """What the front end must know about a loaded engine."""
    return msgspec.structs.replace(
        describe_workers(engine.vllm_config),
        eos_token_ids=eos_token_ids(engine),
        page_groups=internals.pages.count(),
        fast_paths=internals.fast_paths,
        page_needs=internals.pages.needs(),
        cache_config=cache_config(engine),
        sampling_limits=internals.limits,
        max_adapters=Adapters(engine).most,
    )


def describe_workers(config: Any) -> Ready:
    """What is known of an engine by its VllmConfig alone."""
    model_config = config.model_config
    model_class, _ = model_config.registry.resolve_model_cls(model_config.architectures, model_config=model_config)
    return Ready(
        protocol=PROTOCOL_VERSION,
        engine_version=VLLM_VERSION,
        model_class=f"{model_class.__module__}.{model_class.__qualname__}",
        max_context=model_config.max_model_len,
        max_num_seqs=config.scheduler_config.max_num_seqs,
        eos_token_ids=(),
        page_groups=(),
    )


def cache_config(engine: LLMEngine) -> dict[str, str]:
    """The KV cache's configuration, as vLLM's metrics tell it."""
    told: dict[str, str] = engine.vllm_config.cache_config.metrics_info()  # type: ignore[no-untyped-call]
    return {name: value for name, value in told.items() if not name.startswith("_")}


def eos_token_ids(engine: LLMEngine) -> tuple[int, ...]:
    """Ids that end a generation, of generation_config.json and config.json together, ascending."""
    model_config = engine.vllm_config.model_config
    found: set[int] = set()
    for value in (
        model_config.try_get_generation_config().get("eos_token_id"),
        getattr(model_config.hf_text_config, "eos_token_id", None),
    ):
        if value is not None:
            found.update([value] if isinstance(value, int) else value)
    return tuple(sorted(found))


def warm(engine: LLMEngine, internals: Internals, model: str) -> None:
    """Has requests of all kinds computed, once the engine's paths are settled. Raises ModelError, as `load_engine`."""
    from engine.warm_up import warm_up  # noqa: PLC0415 - imports the loop, for engines that serve

    try:
        warm_up(engine, internals, eos_token_ids(engine), compiles=Machine.detect().platform == "gpu")
        if verdict_of_names(JIT_MONITOR) is None:
            as_asked(engine)
    except Exception as error:
        raise ModelError(_explain(error, model)) from error


def _parse(model: str, options: Sequence[str], defaults: Sequence[Choice]) -> argparse.Namespace:
    parser = EngineArgs.add_cli_args(cast("Any", _Parser)(prog="engine options", add_help=False))
    parser.set_defaults(**{choice.destination: choice.value for choice in defaults if choice.is_option})
    # vLLM's own is 0: after each start, requests without a seed would draw what they drew after the last one.
    # Processes that know nothing of each other yet, on several machines, have to begin with the same.
    parser.set_defaults(seed=_any_seed() if Nodes.of(options).number == 1 else 0)
    arguments: argparse.Namespace = parser.parse_args(["--model", model, *options])
    return arguments


class _Parser(FlexibleArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ModelError(f"engine options: {message}; vLLM's documentation lists them")


def _import_model_class(model: str) -> None:
    """Registers the class itself where a plugin registered only its name.

    For a name vLLM imports the class in a second process to look at it, 17 s of a first start on two cores; this one
    is about to import it anyway.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return
    for architecture in read_config(folder)["architectures"]:
        registered = ModelRegistry.models.get(architecture)
        module = getattr(registered, "module_name", None)  # of a class that is registered by name
        if registered is not None and module is not None and not module.startswith("vllm."):
            ModelRegistry.register_model(architecture, registered.load_model_cls())


def _most_tokens(config: Any) -> int:
    """How many tokens the KV cache holds at most; 0: as many as fit."""
    text = os.environ.get(KV_CACHE_TOKENS, "0")
    if not text.isdecimal():
        raise ModelError(f"{KV_CACHE_TOKENS} must be a number of tokens, 0 for all that fit; it is {text!r}")
    is_chosen = config.cache_config.kv_cache_memory_bytes is not None
    return 0 if is_chosen or verdict_of_names(POOL_SIZE) is not None else int(text)


def _reporting(base: type[Executor], report: Report, most_tokens: int) -> type[Executor]:
    """`base`, telling when the engine passes from one stage of its start to the next; its KV cache holds so many tokens
    at most.
    """

    class ReportingExecutor(base):  # type: ignore[misc, valid-type]  # a base chosen at run time
        def determine_available_memory(self) -> list[int]:
            report("measuring memory", _MEASURE)
            available = list(super().determine_available_memory())
            if not most_tokens:
                return available
            from engine.vllm_internals.pool_size import most_bytes  # noqa: PLC0415 - stands on names that were checked

            limits = [most_bytes(specs.values(), most_tokens) for specs in self.get_kv_cache_specs()]
            return [most if limit is None else min(most, limit) for most, limit in zip(available, limits, strict=True)]

        def initialize_from_config(self, kv_cache_configs: list[Any]) -> None:
            report("laying out the pages", _PAGES)
            super().initialize_from_config(kv_cache_configs)

    return ReportingExecutor


def _warm_up(engine: LLMEngine) -> None:
    """One greedy and one sampled request: with them a model learns what it can take. `warm` does the rest."""
    sampled = SamplingParams(temperature=0.6, top_p=0.95, presence_penalty=0.5, max_tokens=4, detokenize=False, seed=0)
    greedy = SamplingParams(temperature=0.0, max_tokens=4, detokenize=False)
    for name, sampling in (("greedy", greedy), ("sampled", sampled)):
        engine.add_request(f"warm-up-{name}", tokens_input([0] * 8), sampling)
    while engine.has_unfinished_requests():
        engine.step()
    engine.reset_prefix_cache()


def _explain(error: Exception, model: str) -> str:
    """One line for the user on why loading `model` failed."""
    text = _essence(error)
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return (
            f"out of memory while loading {model} ({text}); free some, or lower --kv-cache-memory-bytes (CPU), "
            "--gpu-memory-utilization, --max-model-len or --max-num-seqs"
        )
    text = text.partition(" for now. Supported architectures: ")[0]  # vLLM names three hundred
    folder = Path(model).expanduser()
    local = folder.is_dir() and Machine.detect().platform == "cpu"
    return f"{model} could not be loaded: {textwrap.shorten(text, _LONGEST_REASON)}{advice(folder) if local else ''}"


def _essence(error: BaseException) -> str:
    """The line of an error that says most: pydantic wraps vLLM's messages in a frame of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("Value error, ", "Assertion failed, ")):
            return line.partition(", ")[2].partition(" [type=")[0]
    if not lines:
        return type(error).__name__
    said = " ".join(lines) if lines[0].endswith(":") else lines[0]
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"

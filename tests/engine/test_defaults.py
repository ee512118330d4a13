"""What is chosen for vLLM where the user chose nothing."""

import dataclasses
import json
import warnings
from pathlib import Path

import pytest

from engine.defaults import GIB, Machine, Nodes, engine_defaults

CPU = Machine("cpu", cpus=(0, 1, 4, 5), available_memory=16 * GIB)
GPU = Machine("gpu", cpus=(0, 1), available_memory=64 * GIB)


def chosen(machine: Machine, *options: str, model: str = "owner/model", **environment: str) -> dict[str, object]:
    return {choice.name: choice.value for choice in engine_defaults(model, options, environment, machine)}


def test_every_choice_has_a_reason() -> None:
    assert all(choice.reason for machine in (CPU, GPU) for choice in engine_defaults("m", (), {}, machine))


def test_on_cpu_pages_are_small_and_all_cores_compute() -> None:
    choices = chosen(CPU)
    assert choices["--block-size"] == 32
    assert choices["--enforce-eager"] is True
    assert choices["VLLM_CPU_OMP_THREADS_BIND"] == "0,1,4,5"


def test_on_gpu_the_device_decides_page_size_memory_and_compilation() -> None:
    assert not {"--block-size", "--enforce-eager", "--kv-cache-memory-bytes"} & set(chosen(GPU))


def test_on_gpu_longer_steps_are_captured_and_vllms_own_draw_is_taken() -> None:
    choices = chosen(GPU)
    assert choices["--max-cudagraph-capture-size"] == 2048
    assert choices["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert "VLLM_USE_FLASHINFER_SAMPLER" not in chosen(GPU, VLLM_USE_FLASHINFER_SAMPLER="1")
    assert not {"--max-cudagraph-capture-size", "VLLM_USE_FLASHINFER_SAMPLER"} & set(chosen(CPU))


@pytest.mark.parametrize(
    "options",
    [
        ("--max-cudagraph-capture-size=512",),
        ("--cudagraph-capture-sizes", "1", "2"),
        ("--compilation-config", '{"max_cudagraph_capture_size": 64}'),
        ("--compilation-config.max_cudagraph_capture_size=64",),
        ("--compilation_config.mode", "3"),
        ("-cc.cudagraph_capture_sizes=[1,2]",),
        ("-O0",),
        ("--enforce-eager",),
    ],
)
def test_whoever_says_what_is_captured_says_all_of_it(options: tuple[str, ...]) -> None:
    """Of sizes in two places vLLM refuses one, and a largest one that is not the last of a list."""
    assert "--max-cudagraph-capture-size" not in chosen(GPU, *options)


def test_vllm_takes_what_is_chosen_on_a_gpu() -> None:
    """The names alone: what becomes of them needs a GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.envs
        from vllm.engine.arg_utils import EngineArgs

    choices = engine_defaults("m", (), {}, GPU)
    options = {field.name for field in dataclasses.fields(EngineArgs)}
    assert {choice.destination for choice in choices if choice.is_option} <= options
    assert "VLLM_USE_FLASHINFER_SAMPLER" in vllm.envs.environment_variables


@pytest.mark.parametrize(
    "options", [("--block-size", "64"), ("--block-size=64",), ("--block_size", "64"), ("--block_size=64",)]
)
def test_an_option_of_the_user_replaces_the_default(options: tuple[str, ...]) -> None:
    assert "--block-size" in chosen(CPU)
    assert "--block-size" not in chosen(CPU, *options)


def test_the_negative_of_a_switch_replaces_it_too() -> None:
    assert "--enforce-eager" not in chosen(CPU, "--no-enforce-eager")


@pytest.mark.parametrize(
    ("config", "is_one"),
    [
        ({"model_type": "nemotron_h", "mamba_num_heads": 4}, True),
        ({"model_type": "granitemoehybrid", "mamba_n_heads": 4}, True),
        ({"model_type": "mamba2"}, True),
        ({"model_type": "qwen3"}, False),
        ([], False),
    ],
)
def test_no_pages_are_kept_of_layers_whose_states_the_cpu_kernel_does_not_tell(
    config: object, is_one: bool, tmp_path: Path
) -> None:
    """A step of vLLM 0.32 fails there on a prompt that is longer than a page, with prefix caching alone."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ("--enable-prefix-caching" in chosen(CPU, model=str(tmp_path))) is is_one
    assert "--enable-prefix-caching" not in chosen(CPU, "--enable-prefix-caching", model=str(tmp_path))
    assert "--enable-prefix-caching" not in chosen(GPU, model=str(tmp_path))


def test_pipelines_on_cpu_are_compiled() -> None:
    assert chosen(CPU, "-tp", "2")["--enforce-eager"] is True
    assert "--enforce-eager" not in chosen(CPU, "--pipeline-parallel-size", "2")


def test_the_environment_of_the_user_wins() -> None:
    choices = chosen(CPU, VLLM_CPU_OMP_THREADS_BIND="0", VLLM_CPU_KVCACHE_SPACE="2")
    assert "VLLM_CPU_OMP_THREADS_BIND" not in choices
    assert "--kv-cache-memory-bytes" not in choices


def test_bytecode_gets_a_place_where_it_has_none() -> None:
    assert "PYTHONPYCACHEPREFIX" not in chosen(CPU)
    assert chosen(CPU._replace(bytecode=Path("/caches")))["PYTHONPYCACHEPREFIX"] == "/caches"


@pytest.mark.parametrize(
    "options",
    [("--tensor-parallel-size", "2"), ("-tp=2",), ("--pipeline_parallel_size=2",), ("-tp", "1", "-pp", "2")],
)
def test_workers_share_the_cores(options: tuple[str, ...]) -> None:
    choices = chosen(CPU, *options)
    assert choices["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|4,5"
    assert choices["OMP_NUM_THREADS"] == "2"


def test_workers_of_other_machines_take_no_cores_of_this_one() -> None:
    spread = ("--tensor-parallel-size", "4", "--nnodes=2", "--node-rank", "1")
    assert Nodes.of(spread) == Nodes(2, 1)
    assert chosen(CPU, *spread)["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|4,5"
    assert Nodes.of(("-n", "2", "-r", "1")) == Nodes(2, 1)
    assert Nodes.of(("--tensor-parallel-size", "2")) == Nodes(1, 0)


def test_more_workers_than_cores_take_turns() -> None:
    assert chosen(CPU._replace(cpus=(3,)), "--tensor-parallel-size=2")["VLLM_CPU_OMP_THREADS_BIND"] == "3|3"


@pytest.mark.parametrize(
    ("weights", "available", "expected"),
    [
        (10 << 20, 16 * GIB, GIB),  # a tiny model does not take the machine
        (1 * GIB, 16 * GIB, 4 * GIB),
        (8 * GIB, 16 * GIB, 4 * GIB),  # half of what the weights leave
    ],
)
def test_kv_cache_space_follows_the_weights(tmp_path: Path, weights: int, available: int, expected: int) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(weights)  # sparse
    machine = CPU._replace(available_memory=available)
    assert chosen(machine, model=str(tmp_path))["--kv-cache-memory-bytes"] == expected


def test_this_machine_is_read() -> None:
    machine = Machine.detect()
    assert machine.cpus
    assert machine.available_memory > GIB // 4

"""The engines of one server, as one client: a single one, or several that each have their part of the machine."""

import os
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from engine.defaults import REPLICA, Machine, Nodes, parallel_sizes
from engine.messages import Adapter
from server.cli_errors import UsageError
from server.engine_client import EngineClient
from server.engine_supervisor import ONE
from server.pacer import Pacer
from server.process_engine_client import ProcessEngineClient
from server.replicated_engine_client import ReplicatedEngineClient
from server.settings import Settings

DEVICES = "CUDA_VISIBLE_DEVICES"
_DRIVER = Path("/proc/driver/nvidia/gpus")


def engine_of(settings: Settings, options: Sequence[str], adapters: Sequence[Adapter]) -> EngineClient:
    """The client of `settings.data_parallel_size` engines. Raises UsageError where the machine has no room for them."""
    losses, pacer = count(1), Pacer()
    clients = [
        ProcessEngineClient(
            settings.model,
            options,
            environment,
            adapters=adapters,
            most_seconds=settings.engine_timeout,
            losses=losses,
            name=ONE if settings.data_parallel_size == 1 else f"Engine {number}",
            pacer=pacer,
        )
        for number, environment in enumerate(environments(settings.data_parallel_size, options, Machine.detect()))
    ]
    return clients[0] if len(clients) == 1 else ReplicatedEngineClient(clients)


def environments(replicas: int, options: Sequence[str], machine: Machine) -> list[dict[str, str]]:
    """What each of so many engines is told in its environment. Raises UsageError."""
    if replicas == 1:
        return [{}]
    if Nodes.of(options).number > 1:
        raise UsageError(
            f"--data-parallel-size {replicas}: an engine over several machines (--nnodes) has its server to itself; "
            "for more of them, start more servers and put a router in front."
        )
    parts = [{REPLICA: f"{number}/{replicas}"} for number in range(1, replicas + 1)]
    tensor, pipeline = parallel_sizes(options)
    ranks = tensor * pipeline
    if machine.platform == "cpu":
        _check(replicas, ranks, len(machine.cpus), "core", "cores")
        return parts
    devices = _devices()
    _check(replicas, ranks, len(devices), "GPU", "GPUs")
    return [
        {**part, DEVICES: ",".join(devices[number * ranks : (number + 1) * ranks])} for number, part in enumerate(parts)
    ]


def check_heads(config: Mapping[str, Any], options: Sequence[str]) -> None:
    """Raises UsageError where the ranks of an engine cannot share the attention heads of the model with this config."""
    tensor, _ = parallel_sizes(options)
    of_text = config.get("text_config")
    told = of_text if isinstance(of_text, Mapping) else config
    heads = told.get("num_attention_heads")
    if not isinstance(heads, int):
        return
    keys = told.get("num_key_value_heads") or heads
    fitting = [size for size in range(1, heads + 1) if heads % size == 0 and (keys % size == 0 or size % keys == 0)]
    if tensor not in fitting:
        which = f"{heads} attention heads" if heads % tensor else f"{keys} key-value heads"
        raise UsageError(
            f"--tensor-parallel-size {tensor} does not divide the model's {which}; these fit: "
            f"{', '.join(map(str, fitting))}."
        )


def _check(replicas: int, ranks: int, there: int, one: str, several: str) -> None:
    if replicas * ranks <= there:
        return
    each = f"a {one}" if ranks == 1 else f"{ranks} {several}"
    have = f"{there} {one if there == 1 else several}"
    raise UsageError(
        f"--data-parallel-size {replicas}: each engine needs {each}, and this server may use {have}; "
        f"at most {max(1, there // ranks)} would fit."
    )


def _devices() -> list[str]:
    """The ids of the GPUs that this process may use."""
    named = os.environ.get(DEVICES)
    if named is not None:
        return [one for one in named.split(",") if one]
    return [str(number) for number, _ in enumerate(_DRIVER.iterdir())] if _DRIVER.is_dir() else []

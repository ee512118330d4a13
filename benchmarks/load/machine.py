"""This machine: its hardware, and measurements of the two rates that limit every server on it.

`python -m benchmarks.load.machine` prints a Machine as JSON, and with `bandwidth` only the read bandwidth. It is a
process of its own, so that neither torch nor the memory that it reads stays allocated.
"""

import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

_READ_BYTES = 1 << 30
"""Far beyond any cache."""
_MATRIX = 4096
_REPEATS = 7
_BANDWIDTH = "bandwidth"
# Sixteen independent sums of 64 bytes each, so that reading is the bottleneck and not the additions.
_READER = """
#include <stddef.h>
#include <stdint.h>
typedef uint64_t wide __attribute__((vector_size(64)));
uint64_t read_all(const wide *data, size_t count) {
    uint64_t total = 0;
#pragma omp parallel for reduction(+ : total) schedule(static)
    for (size_t block = 0; block < count / 4096; block++) {
        wide sums[16] = {0};
        for (size_t at = block * 4096; at < (block + 1) * 4096; at += 16)
            for (int lane = 0; lane < 16; lane++) sums[lane] += data[at + lane];
        for (int lane = 0; lane < 16; lane++) total += sums[lane][0] + sums[lane][7];
    }
    return total;
}
"""


@dataclass(frozen=True)
class Machine:
    """`cores`: those that this process may use. Memory in bytes; rates in bytes and operations per second."""

    cpu: str
    cores: int
    memory: int
    kernel: str
    read_bandwidth: float
    bf16_matmul: float


def measure() -> Machine:
    """Measures this machine, which takes some seconds. Nothing else should run meanwhile."""
    cores = len(os.sched_getaffinity(0))
    return Machine(
        cpu=_cpu_model(),
        cores=cores,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        read_bandwidth=read_bandwidth(),
        bf16_matmul=_matmul_rate(cores),
    )


def measure_apart() -> Machine:
    """The same, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=True, timeout=120)
    return Machine(**json.loads(done.stdout))


def read_bandwidth_apart() -> float:
    """The read bandwidth of this moment, measured in a process of its own. A shared machine's changes all the time."""
    command = [sys.executable, "-m", __name__, _BANDWIDTH]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def read_bandwidth() -> float:
    """The best of several passes over a gibibyte on all cores, with a reader that is compiled here. Takes a second."""
    import numpy as np  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "reader.c"), Path(folder, "reader.so")
        source.write_text(_READER)
        options = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
        subprocess.run(["gcc", *options, "-o", library, source], check=True)  # noqa: S607 - the set-up asks for gcc
        read_all = ctypes.CDLL(str(library)).read_all
    read_all.argtypes, read_all.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_uint64
    data = np.ones(_READ_BYTES + 64, dtype=np.uint8)
    aligned = data.ctypes.data + -data.ctypes.data % 64
    return _READ_BYTES / _best_seconds(lambda: read_all(aligned, _READ_BYTES // 64))


def _matmul_rate(cores: int) -> float:
    """The best of several square bf16 products by torch."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(cores)
    left = torch.randn(_MATRIX, _MATRIX).to(torch.bfloat16)
    right = torch.randn(_MATRIX, _MATRIX).to(torch.bfloat16)
    return 2 * _MATRIX**3 / _best_seconds(lambda: left @ right)


def _best_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    print(read_bandwidth() if sys.argv[1:] == [_BANDWIDTH] else json.dumps(asdict(measure())))

"""A small made-up result with two servers, shared by the tests of files, tables and plots."""

from dataclasses import asdict

from benchmarks.load.accounting import Sample
from benchmarks.load.limits import Shape
from benchmarks.load.machine import Machine
from benchmarks.load.records import LoadRecord, Result, ServerRecord
from benchmarks.load.workload import Load

LOADS = (
    Load(streams=1, mode="standard", prompt_tokens=100, output_tokens=11, requests=1, limit=9, warm_up=0),
    Load(streams=2, mode="half", prompt_tokens=100, output_tokens=11, requests=2, limit=9, warm_up=0),
)
SHAPE = Shape(1_000_000, 100_000, 64, 32, 6, 2, 128)
MACHINE = Machine("AMD EPYC 9", 2, 24 << 30, "6.1", 10e9, 100e9)


def sample(seconds: float, *, thinks: bool = False, error: str | None = None) -> Sample:
    """Begun at 0, first token after 1 s."""
    return Sample(
        thinks=thinks,
        started=0.0,
        first=1.0,
        first_answer=None if thinks else 1.25,
        ended=1.0 + seconds,
        prompt_tokens=109,
        cached_tokens=32,
        completion_tokens=11,
        events=10,
        error=error,
    )


def record(seconds: float, *samples: Sample) -> LoadRecord:
    return LoadRecord(1.0 + seconds, 0.011, 0.022, 0.0033, 3 << 29, samples)


def result() -> Result:
    """Ours generates a token in 0.1, 0.2 and 0.3 s by round; the other fails in its second round, and one request."""
    ours = [
        ServerRecord(
            "twogear",
            number,
            ready=8.0 + number,
            first_token=9.0 + number,
            loads={
                LOADS[0].name: record(float(number), sample(number)),
                LOADS[1].name: record(float(number), sample(number), sample(number, thinks=True)),
            },
        )
        for number in (1, 2, 3)
    ]
    other = ServerRecord(
        "vllm",
        1,
        50.0,
        51.0,
        {
            LOADS[0].name: record(9.0, sample(9.0)),
            LOADS[1].name: record(9.0, sample(9.0, error="refused"), sample(9.0)),
        },
    )
    return Result(
        what="embedded",
        date="2026-11-23",
        command="twogear bench embedded",
        commit="0f4bcd6",
        machine=MACHINE,
        versions={"python": "3.11.7"},
        model={"name": "embedded", "weight_bytes": 4_000_000, "shape": asdict(SHAPE)},
        starts={"twogear": {"command": "twogear serve", "environment": {"A": "1"}}},
        loads=LOADS,
        rounds=[ours[0], other, ours[1], ServerRecord("vllm", 2, failed="out of memory"), ours[2]],
        beside={
            "bare-engine": [{LOADS[0].name: {"seconds": 1.1, "tokens": 11}}],
            "transformers": {"failed": "no time"},
        },
    )

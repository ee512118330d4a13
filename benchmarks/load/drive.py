"""Applies one load to one server, in a process of its own: `python -m benchmarks.load.drive`, a Job on stdin as JSON.

A closed loop: each stream sends its next request when its last one is answered. Writes an Outcome to stdout.
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import uvloop

from benchmarks.load.accounting import Sample, StreamAccount
from benchmarks.load.client import HttpError, post


@dataclass(frozen=True)
class Request:
    """One request: its JSON body, and whether it asks for thinking."""

    body: dict[str, Any]
    thinks: bool


@dataclass(frozen=True)
class Job:
    """`requests` go to `url` over `streams` at once. Those without an answer after `limit` seconds are given up.

    `begins`: not before this moment (perf_counter, which is the machine's), for several processes that begin together.
    """

    url: str
    streams: int
    limit: float
    requests: Sequence[Request]
    begins: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """`seconds` from the first request to the last answer; `client_cpu`: the CPU seconds of this process meanwhile."""

    seconds: float
    client_cpu: float
    samples: Sequence[Sample]


async def drive(job: Job) -> Outcome:
    """Applies the load."""
    bodies = [orjson.dumps(request.body) for request in job.requests]
    waiting = iter(list(zip(job.requests, bodies, strict=True)))
    await asyncio.sleep(max(0.0, job.begins - time.perf_counter()))
    cpu, started = _cpu_seconds(), time.perf_counter()
    streams = [_stream(job, waiting, started) for _ in range(job.streams)]
    samples = [sample for stream in await asyncio.gather(*streams) for sample in stream]
    seconds = max((sample.ended for sample in samples), default=0.0)
    return Outcome(seconds, _cpu_seconds() - cpu, samples)


async def _stream(job: Job, waiting: Iterator[tuple[Request, bytes]], zero: float) -> list[Sample]:
    return [await _ask(job, request, body, zero) for request, body in waiting]


async def _ask(job: Job, request: Request, body: bytes, zero: float) -> Sample:
    account = StreamAccount(time.perf_counter() - zero, thinks=request.thinks)
    error = None
    try:
        async with asyncio.timeout(max(0.0, zero + job.limit - time.perf_counter())):
            await post(job.url, body, lambda data, now: account.feed(data, now - zero))
    except TimeoutError:
        error = f"not answered {job.limit:g} s after the start of the load"
    except HttpError as failure:
        error = str(failure)
    return account.sample(time.perf_counter() - zero, error)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Reads the job, applies it, writes the outcome."""
    fields = json.load(sys.stdin)
    job = Job(**{**fields, "requests": [Request(**request) for request in fields["requests"]]})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(drive(job))
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()

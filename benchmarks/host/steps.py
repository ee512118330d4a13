"""The host's time in a decode step, without a GPU: `python -m benchmarks.host.steps`.

vLLM's engine with the scheduler that runs ahead, as on a GPU, around an executor that has every token at once
(`fake_engine.py`), and Twogear's loop over it, with its messages encoded. N requests decode; the same engine takes one
way after the other, in turns, so that what else the machine does meets all alike. Times are CPU time of the thread.
What the model runner prepares and launches is not in them, nor the front end.

vLLM's own is `LLMEngine.step` alone: scheduler, executor, outputs as RequestOutputs, no message.
"""

import argparse
import gc
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

from benchmarks.result_text import result_text
from engine.messages import Abort, Failed, FromEngine, Generate, Sampling
from engine.transport import frame

PROMPT_TOKENS = 500
ENDLESS = 30_000
GOAL = 0.35
"""Of vLLM's own time in a step, at 128 and 512 streams."""


class Way(NamedTuple):
    """What of Twogear's is on. `loop`: Twogear's loop steps the engine, not vLLM's LLMEngine."""

    name: str
    loop: bool = True
    room: bool = False
    update: bool = False
    outputs: bool = False
    schedule: bool = False


WAYS = (
    Way("vLLM", loop=False),
    Way("all off"),
    Way("page room", room=True),
    Way("+ short update", room=True, update=True),
    Way("+ direct outputs", room=True, update=True, outputs=True),
    Way("+ short schedule", room=True, update=True, outputs=True, schedule=True),
)
PARTS = ("schedule", "executor", "update", "outputs", "encode", "rest")


class _Sink:
    """In the place of the connection: encodes what is sent, as it would."""

    def __init__(self, parts: "_Parts") -> None:
        self._parts = parts

    def send(self, message: FromEngine) -> None:
        start = time.thread_time_ns()
        frame(message)
        self._parts.add("encode", time.thread_time_ns() - start)
        match message:
            case Failed(text):
                raise RuntimeError(text)


class _Parts:
    """Nanoseconds by part of a step; parts do not lie within each other."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}

    def add(self, part: str, nanoseconds: int) -> None:
        self.spent[part] = self.spent.get(part, 0) + nanoseconds

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time_ns()
            result = function(*args, **kwargs)
            self.add(part, time.thread_time_ns() - start)
            return result

        return call


class _Bench:
    """One engine, and its way through a step."""

    def __init__(self, folder: Path) -> None:
        from benchmarks.host.fake_engine import fake_engine  # noqa: PLC0415 - imports vLLM
        from engine.loop import EngineLoop  # noqa: PLC0415
        from engine.vllm_internals.ahead_scheduler import AheadRoomManager, AheadScheduler  # noqa: PLC0415
        from engine.vllm_internals.attach import attach  # noqa: PLC0415
        from engine.vllm_internals.steps import DirectSteps, PlainSteps  # noqa: PLC0415

        self.engine = fake_engine(folder)
        core: Any = cast("Any", self.engine.engine_core).engine_core
        self._scheduler = core.scheduler
        self._vllms = type(core.scheduler), type(core.scheduler.kv_cache_manager)
        internals = attach(self.engine)
        off = [one for one in internals.fast_paths if not one.on and one.unexpected]
        if off or type(core.scheduler) is not AheadScheduler:
            raise RuntimeError(f"this vLLM does not take all paths: {internals.fast_paths}")
        self._ours = AheadScheduler, AheadRoomManager
        self.parts = _Parts()
        self.loop: Any = EngineLoop(self.engine, internals, (2,), cast("Any", _Sink(self.parts)))
        self._steps = PlainSteps(self.engine), DirectSteps(self.engine)
        self._way = WAYS[0]
        executor, processor = core.model_executor, cast("Any", self.engine.output_processor)
        executor.execute_model = self.parts.timed("executor", executor.execute_model)
        executor.sample_tokens = self.parts.timed("executor", executor.sample_tokens)
        processor.process_outputs = self.parts.timed("outputs", processor.process_outputs)

    def take(self, way: Way) -> None:
        """Goes this way from the next step on."""
        scheduler = self._scheduler
        manager = scheduler.kv_cache_manager
        for name in ("schedule", "update_from_output"):
            vars(scheduler).pop(name, None)
        scheduler.__class__ = self._ours[0] if way.loop else self._vllms[0]
        scheduler._updates_short, scheduler._schedules_short = way.update, way.schedule
        manager.__class__ = self._vllms[1]
        if way.room:
            self._ours[1].take_over(manager)
        scheduler.schedule = self.parts.timed("schedule", scheduler.schedule)
        scheduler.update_from_output = self.parts.timed("update", scheduler.update_from_output)
        self.loop._stepper = self._steps[way.outputs]
        self._way = way

    def step(self) -> dict[str, int]:
        """Nanoseconds of each part of the next step."""
        self.parts.spent.clear()
        start = time.thread_time_ns()
        if self._way.loop:
            self.loop._step()
        else:
            self.engine.step()
        total = time.thread_time_ns() - start
        spent = dict(self.parts.spent)
        return spent | {"rest": total - sum(spent.values()), "total": total}

    def begin(self, streams: int) -> list[str]:
        """So many requests, all of which have drawn some tokens; their ids."""
        names = [f"r{streams}-{number}" for number in range(streams)]
        for number, name in enumerate(names):
            ids = [(number * 7 + position) % 1000 + 3 for position in range(PROMPT_TOKENS)]
            temperature, top_p = (0.6, 0.95) if number % 2 else (0.0, 1.0)
            sampling = Sampling(max_tokens=ENDLESS, ignore_eos=True, temperature=temperature, top_p=top_p)
            self.loop._handle(Generate(name, ids, sampling))
        while any(request.num_output_tokens < 3 for request in self._scheduler.requests.values()):
            self.loop._step()
        return names

    def end(self, names: Sequence[str]) -> None:
        """Of all of them."""
        for name in names:
            self.loop._handle(Abort(name))
        while self.engine.has_unfinished_requests() or self.loop._pages.has_work():
            self.loop._step()
        self.engine.reset_prefix_cache()


def measure(
    streams: Sequence[int], rounds: int, steps: int, keep: Callable[[list[dict[str, Any]]], object]
) -> list[dict[str, Any]]:
    """One entry for each number of streams and way: microseconds in a step, by part. `keep`: given all so far after
    each number, since a GPU machine's time may end before the last one.
    """
    results = []
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder))
        gc.collect()
        gc.freeze()
        for number in streams:
            bench.take(WAYS[1])
            names = bench.begin(number)
            samples: dict[str, list[dict[str, int]]] = {way.name: [] for way in WAYS}
            for _ in range(rounds):
                for way in WAYS:
                    bench.take(way)
                    for _ in range(4):  # until what the last way remembers is made anew
                        bench.step()
                    samples[way.name] += [bench.step() for _ in range(steps)]
            bench.take(WAYS[1])
            bench.end(names)
            results += [_entry(number, name, spent) for name, spent in samples.items()]
            keep(results)
    return results


def _entry(streams: int, way: str, samples: Sequence[dict[str, int]]) -> dict[str, Any]:
    def microseconds(part: str, of: Callable[[Sequence[float]], float]) -> float:
        return of([sample.get(part, 0) / 1000 for sample in samples])

    return {
        "streams": streams,
        "way": way,
        "median": microseconds("total", statistics.median),
        "mean": microseconds("total", statistics.fmean),
        "parts": {part: microseconds(part, statistics.median) for part in PARTS},
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """As Markdown: milliseconds in a step, medians, and the part of vLLM's own."""
    streams = sorted({entry["streams"] for entry in results})
    by = {(entry["streams"], entry["way"]): entry for entry in results}
    lines = ["| way | " + " | ".join(map(str, streams)) + " |", "|---" * (len(streams) + 1) + "|"]
    for way in WAYS:
        cells = []
        for number in streams:
            own, ours = by[number, WAYS[0].name]["median"], by[number, way.name]["median"]
            cells.append(f"{ours / 1000:.2f} ({ours / own:.2f})")
        lines.append(f"| {way.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table, and writes the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host.steps", description=__doc__)
    parser.add_argument("--streams", default="1,32,128,512,1024", metavar="N,N")
    parser.add_argument("--rounds", type=int, default=6, help="how often each way is taken")
    parser.add_argument("--steps", type=int, default=32, help="that are measured each time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    warnings.simplefilter("ignore")

    def keep(results: list[dict[str, Any]]) -> None:
        if args.json is not None:
            args.json.write_text(result_text(_result(args, results)), encoding="utf-8")

    print(table(measure([int(number) for number in args.streams.split(",")], args.rounds, args.steps, keep)))


def _result(args: argparse.Namespace, results: list[dict[str, Any]]) -> dict[str, Any]:
    from vllm import __version__  # noqa: PLC0415

    return {
        "what": "CPU time of the host in a decode step, in microseconds, by way and part; no model runner",
        "command": f"python -m benchmarks.host.steps --streams {args.streams} --rounds {args.rounds} "
        f"--steps {args.steps}",
        "date": datetime.now(UTC).date().isoformat(),
        "vllm": __version__,
        "python": platform.python_version(),
        "goal": GOAL,
        "results": results,
    }


if __name__ == "__main__":
    main()

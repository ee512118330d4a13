"""How long a short request waits for its first token while others think: `python -m benchmarks.short_beside_thinkers`.

Against running servers, one after the other in rounds, each with the same load: first short requests alone, then
thinkers alone, then both. A thinker asks again as soon as it is answered. Short requests come at a fixed rate, whether
the earlier ones were answered or not. The client shares the machine with the server.
"""

import argparse
import asyncio
import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import uvloop

from benchmarks.load.accounting import Sample, StreamAccount
from benchmarks.load.client import HttpError, post
from benchmarks.load.statistics import percentile
from benchmarks.load.workload import SAMPLING, Prompts
from benchmarks.result_text import result_text
from server.settings import EMBEDDED_MODEL

RATE = 4.0
"""Short requests a second."""
SHORT_WORDS, SHORT_TOKENS = 60, 16
THINKER_WORDS, THINKER_TOKENS = 60, 256


@dataclass(frozen=True)
class Figures:
    """Of one round on one server. Seconds; tokens a second of all thinkers together, by what they finished."""

    server: str
    thinkers: int
    alone_p50: float
    alone_p95: float
    loaded_p50: float
    loaded_p95: float
    loaded_worst: float
    thinking_alone: float
    thinking_loaded: float
    failed: int


class Load:
    """Requests to one server."""

    def __init__(self, url: str, model: str, prompts: Prompts) -> None:
        self._url = f"{url.rstrip('/')}/v1/chat/completions"
        self._model = model
        self._prompts = prompts
        self._asked = 0

    async def ask(self, words: int, tokens: int, *, thinks: bool) -> Sample:
        """One request of its own words that is answered with exactly so many tokens."""
        self._asked += 1
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": self._prompts.text(words, f"{time.time_ns()}/{self._asked}")}],
            "chat_template_kwargs": {"enable_thinking": thinks},
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **SAMPLING[thinks],
        }
        started = time.perf_counter()
        account = StreamAccount(started, thinks=thinks)
        error = None
        try:
            await post(self._url, orjson.dumps(body), account.feed)
        except HttpError as failure:
            error = str(failure)
        return account.sample(time.perf_counter(), error)

    async def short(self, seconds: float) -> list[Sample]:
        """Short requests at the rate, for so long."""
        tasks = []
        for _ in range(int(seconds * RATE)):
            tasks.append(asyncio.create_task(self.ask(SHORT_WORDS, SHORT_TOKENS, thinks=False)))
            await asyncio.sleep(1 / RATE)
        return list(await asyncio.gather(*tasks))

    async def thinkers(self, count: int, done: list[Sample]) -> None:
        """Thinkers that ask again and again until they are cancelled; what was answered goes to `done`."""

        async def think() -> None:
            while True:
                done.append(await self.ask(THINKER_WORDS, THINKER_TOKENS, thinks=True))

        await asyncio.gather(*(think() for _ in range(count)))


async def measure(load: Load, server: str, thinkers: int, seconds: float) -> Figures:
    """One round."""
    alone = await load.short(5)
    done: list[Sample] = []
    thinking = asyncio.create_task(load.thinkers(thinkers, done))
    await asyncio.sleep(seconds / 2)
    begun = len(done)
    await asyncio.sleep(seconds)
    middle = len(done)
    loaded = await load.short(seconds)
    end = len(done)
    thinking.cancel()
    await asyncio.gather(thinking, return_exceptions=True)
    await asyncio.sleep(2)
    first = sorted(_first(sample) for sample in loaded)
    single = sorted(_first(sample) for sample in alone)
    return Figures(
        server=server,
        thinkers=thinkers,
        alone_p50=statistics.median(single),
        alone_p95=percentile(single, 0.95),
        loaded_p50=statistics.median(first),
        loaded_p95=percentile(first, 0.95),
        loaded_worst=first[-1],
        thinking_alone=(middle - begun) * THINKER_TOKENS / seconds,
        thinking_loaded=(end - middle) * THINKER_TOKENS / seconds,
        failed=sum(sample.error is not None for sample in [*alone, *loaded, *done]),
    )


def _first(sample: Sample) -> float:
    return (sample.ended if sample.first is None else sample.first) - sample.started


def main() -> None:
    """Measures all servers in turn, prints a line for each round and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="append", required=True, metavar="NAME=URL", help="several, in turn")
    parser.add_argument("--thinkers", type=int, nargs="+", default=[64, 512], help="how many at once")
    parser.add_argument("--seconds", type=float, default=20, help="of each part of a round")
    parser.add_argument("--rounds", type=int, default=2, help="of all servers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    servers = [one.partition("=")[::2] for one in args.server]
    prompts = Prompts(EMBEDDED_MODEL)
    rounds: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        for name, url in servers:
            model = httpx.get(f"{url}/v1/models", timeout=10).raise_for_status().json()["data"][0]["id"]
            for thinkers in args.thinkers:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    figures = runner.run(measure(Load(url, model, prompts), name, thinkers, args.seconds))
                rounds.append(asdict(figures))
                print(json.dumps(rounds[-1]))
    if args.json is not None:
        head = {
            "what": "short_beside_thinkers",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "cpu": platform.processor() or platform.machine(),
            "command": f"python -m benchmarks.short_beside_thinkers --thinkers {' '.join(map(str, args.thinkers))} "
            f"--seconds {args.seconds:g} --rounds {args.rounds}",
        }
        args.json.write_text(result_text({**head, "rounds": rounds}))


if __name__ == "__main__":
    main()

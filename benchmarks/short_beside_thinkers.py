"""How long a short request waits for its first token while others think: `python -m benchmarks.short_beside_thinkers`.

Against running servers, one after the other in rounds, each with the same load: first short requests alone, then
thinkers alone, then both. A thinker asks again as soon as it is answered. Short requests come at a fixed rate, whether
the earlier ones were answered or not; they end in a question that is answered in words, since a first token that shows
nothing, such as one that opens a call, cannot be seen. The client shares the machine with the server.

What is to be reached: the 95th percentile of the short requests' time to the first token is at most twice that without
thinkers, and a step of the batch; and the thinkers keep 85 % of the tokens that they get alone.
"""

import argparse
import asyncio
import json
import math
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import uvloop

from benchmarks.load.accounting import Sample, StreamAccount
from benchmarks.load.client import HttpError, post
from benchmarks.load.open_files import OTHER_FILES, raise_open_files
from benchmarks.load.statistics import percentile
from benchmarks.load.workload import SAMPLING, Prompts
from benchmarks.result_text import result_text
from server.access.keys import client_headers
from server.settings import EMBEDDED_MODEL

RATE = 4.0
"""Short requests a second."""
SHORT_WORDS, SHORT_TOKENS = 60, 16
QUESTION = "What is 38 + 45?"
THINKER_WORDS, THINKER_TOKENS = 60, 256


@dataclass(frozen=True)
class Figures:
    """Of one round on one server. Seconds; tokens a second of all thinkers together.

    `step`: the median time between two tokens of a thinker, beside short requests. `allowed`: what `loaded_p95` may be
    (see above); `kept`: the thinkers' part of what they get alone.
    """

    server: str
    thinkers: int
    alone_p50: float
    alone_p95: float
    loaded_p50: float
    loaded_p95: float
    loaded_worst: float
    step: float
    allowed: float
    thinking_alone: float
    thinking_loaded: float
    kept: float
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
        text = self._prompts.text(words, f"{time.time_ns()}/{self._asked}")
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": text if thinks else f"{text}\n{QUESTION}"}],
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

    async def thinkers(self, count: int, done: list[Sample], stop: asyncio.Event) -> None:
        """Thinkers that ask again and again until `stop`, and then are answered; the samples go to `done`."""

        async def think() -> None:
            while not stop.is_set():
                done.append(await self.ask(THINKER_WORDS, THINKER_TOKENS, thinks=True))

        await asyncio.gather(*(think() for _ in range(count)))


async def measure(load: Load, server: str, thinkers: int, seconds: float) -> Figures:
    """One round."""
    alone = await load.short(seconds)
    done: list[Sample] = []
    stop = asyncio.Event()
    thinking = asyncio.create_task(load.thinkers(thinkers, done, stop))
    await asyncio.sleep(seconds)  # until they have come apart
    begin = time.perf_counter()
    await asyncio.sleep(seconds)
    middle = time.perf_counter()
    loaded = await load.short(seconds)
    end = time.perf_counter()
    stop.set()
    await thinking
    first = sorted(map(_first, loaded))
    single = sorted(map(_first, alone))
    step = _step(done, middle, end)
    by_themselves, beside = _tokens(done, begin, middle) / (middle - begin), _tokens(done, middle, end) / (end - middle)
    return Figures(
        server=server,
        thinkers=thinkers,
        alone_p50=statistics.median(single),
        alone_p95=percentile(single, 0.95),
        loaded_p50=statistics.median(first),
        loaded_p95=percentile(first, 0.95),
        loaded_worst=first[-1],
        step=step,
        allowed=2 * percentile(single, 0.95) + step,
        thinking_alone=by_themselves,
        thinking_loaded=beside,
        kept=beside / by_themselves if by_themselves else math.nan,
        failed=sum(sample.error is not None for sample in [*alone, *loaded, *done]),
    )


def _tokens(samples: Sequence[Sample], begin: float, end: float) -> float:
    """Those that came between two moments, each request's spread evenly from its first token to its last."""
    total = 0.0
    for sample in samples:
        if sample.first is not None and sample.ended > sample.first:
            within = max(0.0, min(sample.ended, end) - max(sample.first, begin))
            total += sample.completion_tokens * within / (sample.ended - sample.first)
    return total


def _step(samples: Sequence[Sample], begin: float, end: float) -> float:
    """The median time between two tokens, of the requests that generated between two moments."""
    times = [
        (sample.ended - sample.first) / (sample.completion_tokens - 1)
        for sample in samples
        if sample.first is not None and sample.completion_tokens > 1 and sample.first < end and sample.ended > begin
    ]
    return statistics.median(times) if times else math.nan


def _first(sample: Sample) -> float:
    return (sample.ended if sample.first is None else sample.first) - sample.started


def main() -> None:
    """Measures all servers in turn, prints a line for each round and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="append", required=True, metavar="NAME=URL", help="several, in turn")
    parser.add_argument("--thinkers", type=int, nargs="+", default=[64, 512, 1024], help="how many at once")
    parser.add_argument("--seconds", type=float, default=20, help="of each part of a round")
    parser.add_argument("--rounds", type=int, default=2, help="of all servers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    raise_open_files(max(args.thinkers) + OTHER_FILES)
    servers = [one.partition("=")[::2] for one in args.server]
    prompts = Prompts(EMBEDDED_MODEL)
    rounds: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        for name, url in servers:
            model = (
                httpx.get(f"{url}/v1/models", headers=client_headers(), timeout=10)
                .raise_for_status()
                .json()["data"][0]["id"]
            )
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

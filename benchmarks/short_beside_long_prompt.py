"""How long short requests wait while a long prompt is read: `python -m benchmarks.short_beside_long_prompt`.

Against running servers, one after the other. A thinker asks with a long prompt; from `LATER` seconds on short requests
come, one after another, until the long one has its first token. The client shares the machine with the server.
"""

import argparse
import asyncio
import json
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import uvloop

from benchmarks.load.workload import Prompts
from benchmarks.result_text import result_text
from benchmarks.short_beside_thinkers import SHORT_TOKENS, SHORT_WORDS, Load
from server.access.keys import client_headers
from server.settings import EMBEDDED_MODEL

LATER = 0.4
"""Seconds after the long prompt."""
PAUSE = 0.5
"""Seconds from an answer to the next short request."""


@dataclass(frozen=True)
class Figures:
    """Of one server and one length of prompt, in tokens. Seconds to the first token: of the short ones in order."""

    server: str
    prompt: int
    long_first: float
    short_first: list[float]
    failed: int


async def measure(load: Load, server: str, prompt: int) -> Figures:
    """One long prompt, and as many short requests as come while it is read."""
    await load.ask(SHORT_WORDS, SHORT_TOKENS, thinks=False)  # warms up
    long = asyncio.create_task(load.ask(prompt, SHORT_TOKENS, thinks=True))
    await asyncio.sleep(LATER)
    short = []
    while not long.done():
        short.append(await load.ask(SHORT_WORDS, SHORT_TOKENS, thinks=False))
        await asyncio.sleep(PAUSE)
    answers = [await long, *short]
    first = [(one.ended if one.first is None else one.first) - one.started for one in answers]
    return Figures(server, prompt, first[0], first[1:], sum(one.error is not None for one in answers))


def main() -> None:
    """Measures all servers in turn, prints a line for each prompt and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", action="append", required=True, metavar="NAME=URL", help="several, in turn")
    parser.add_argument("--prompts", type=int, nargs="+", default=[20_000, 60_000], help="tokens of the long prompts")
    parser.add_argument("--rounds", type=int, default=2, help="of all servers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    prompts = Prompts(EMBEDDED_MODEL)
    rounds: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        for name, _, url in (one.partition("=") for one in args.server):
            models = httpx.get(f"{url}/v1/models", headers=client_headers(), timeout=10).raise_for_status().json()
            for prompt in args.prompts:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    load = Load(url, models["data"][0]["id"], prompts)
                    rounds.append(asdict(runner.run(measure(load, name, prompt))))
                print(json.dumps(rounds[-1]), flush=True)
    if args.json is not None:
        head = {
            "what": "short_beside_long_prompt",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "cpu": platform.processor() or platform.machine(),
            "command": "python -m benchmarks.short_beside_long_prompt --prompts "
            f"{' '.join(map(str, args.prompts))} --rounds {args.rounds}",
        }
        args.json.write_text(result_text({**head, "rounds": rounds}))


if __name__ == "__main__":
    main()

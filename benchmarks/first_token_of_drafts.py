"""How much later a kept draft's first token comes than the direct mode's: `python -m benchmarks.first_token_of_drafts`.

Against a running server whose profile has modes of kind `auto`. Each held-out question is asked in the direct mode and
in every such mode, one request at a time, in an order that turns from question to question, streamed and greedy. No
request finds another's pages. What is told of each mode is of the questions whose draft was kept in it: `direct` and
`auto` are the median seconds to the first token of the answer, `times_as_late` the median of their quotients for the
same question. The client shares the machine with the server.

What is to be reached: a kept draft's first token comes at most 1.15 times as late.
"""

import argparse
import json
import platform
import statistics
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import orjson

from benchmarks.load.accounting import StreamAccount
from benchmarks.load.client import post
from benchmarks.result_text import result_text
from evals.asking import Server, with_server
from server.cli_errors import UsageError
from server.urls import server_url
from tasks.families import EMBEDDED, held_out_items


class Answer(NamedTuple):
    """Of one request: seconds to the first token of the answer, its tokens, and the mode that was chosen."""

    first: float
    tokens: int
    chosen: str


@dataclass(frozen=True)
class Figures:
    """Of one mode; see above. `tokens`: the median of a kept answer."""

    mode: str
    kept: int
    asked: int
    direct: float
    auto: float
    times_as_late: float
    tokens: float


class _Chosen:
    """Notes the mode that a stream tells, as its bytes come."""

    def __init__(self) -> None:
        self.body = b""

    def mode(self) -> str:
        """Empty where none was told."""
        events = [line.removeprefix(b"data: ") for line in self.body.split(b"\n\n") if line.startswith(b"data: {")]
        told = (choice.get("reasoning_mode") for one in events for choice in orjson.loads(one)["choices"])
        return next((mode for mode in told if mode is not None), "")


async def ask(url: str, question: str, mode: str) -> Answer:
    """One request on pages of its own."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "reasoning_mode": mode,
        "temperature": 0.0,
        "cache_salt": uuid.uuid4().hex,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, chosen = time.perf_counter(), _Chosen()
    account = StreamAccount(started, thinks=False)

    def feed(data: bytes, now: float) -> None:
        chosen.body += data
        account.feed(data, now)

    await post(f"{url}/v1/chat/completions", orjson.dumps(body), feed)
    sample = account.sample(time.perf_counter())
    first = sample.ended if sample.first_answer is None else sample.first_answer
    return Answer(first - started, sample.completion_tokens, chosen.mode())


async def measure(server: Server, url: str, items: int, seed: int) -> list[Figures]:
    """All modes of kind `auto`, in turn with the first direct one."""
    modes = await server.modes()
    autos = [name for name, kind in modes.items() if kind == "auto"]
    if not autos:
        raise UsageError(f"the server has no mode of kind auto, but {', '.join(modes)}")
    direct = await server.mode_of_kind("direct")
    questions = [item.question.strip() for item in held_out_items(EMBEDDED, items, seed)]
    found: dict[str, list[Answer]] = {name: [] for name in (direct, *autos)}
    order = list(found)
    for question in questions:
        order = [*order[1:], order[0]]
        for name in order:
            found[name].append(await ask(url, question, name))
    return [figures(name, direct, found[direct], found[name]) for name in autos]


def figures(mode: str, direct: str, at_once: Sequence[Answer], drafted: Sequence[Answer]) -> Figures:
    """Of one mode, beside the mode `direct` for the same questions. Raises UsageError where no draft was kept."""
    kept = [(one, other) for one, other in zip(at_once, drafted, strict=True) if other.chosen == direct]
    if not kept:
        raise UsageError(f"mode {mode} kept no draft of {len(drafted)}")
    return Figures(
        mode=mode,
        kept=len(kept),
        asked=len(drafted),
        direct=statistics.median(one.first for one, _ in kept),
        auto=statistics.median(other.first for _, other in kept),
        times_as_late=statistics.median(other.first / one.first for one, other in kept),
        tokens=statistics.median(other.tokens for _, other in kept),
    )


def main() -> None:
    """Measures, prints a line for each mode and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", type=server_url, default="http://127.0.0.1:8000", help="the server")
    parser.add_argument("--items", type=int, default=100, help="questions")
    parser.add_argument("--seed", type=int, default=3, help="which questions are drawn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes")
    args = parser.parse_args()
    found = with_server(args.url, 1, lambda server: measure(server, args.url, args.items, args.seed))
    for one in found:
        print(json.dumps(asdict(one)))
    if args.json is not None:
        head = {
            "what": "first_token_of_drafts",
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "cpu": platform.processor() or platform.machine(),
            "command": f"python -m benchmarks.first_token_of_drafts --items {args.items} --seed {args.seed}",
        }
        args.json.write_text(result_text({**head, "modes": [asdict(one) for one in found]}))


if __name__ == "__main__":
    main()

"""What a conversation's turns compute again: `python -m benchmarks.cost_of_turns`, on a running server.

Ten turns in each mode, with answers of a set length and, in reasoning mode, as much thinking as the budget allows.
Everything is counted in tokens, so neither the machine nor its load matters. The table in docs/conversations.md is made
from the result file (`--report FILE`).
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load.records import RESULTS, ROOT, commit, today, versions
from benchmarks.result_text import result_text
from chat_templates.format import ChatFormat
from server.settings import EMBEDDED_MODEL

TURNS = 10
PAGE = ROOT / "docs" / "conversations.md"
BEGIN, END = "<!-- made by benchmarks/cost_of_turns.py -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Kind:
    """A kind of conversation: lengths in tokens."""

    mode: str
    thinking: int
    answer: int


KINDS = (
    Kind("standard", 0, 50),
    Kind("standard", 0, 200),
    Kind("reasoning", 100, 50),
    Kind("reasoning", 100, 200),
    Kind("reasoning", 400, 200),
)


@dataclass(frozen=True)
class Turn:
    """One turn but the first. `new`: what its prompt has after the last generated token, that one included, whose keys
    and values are only computed now. `shared`: what it has in common with the last turn's prompt and generation.
    """

    prompt: int
    cached: int
    new: int
    shared: int
    reasoning: int

    @property
    def dropped(self) -> int:
        """Tokens that are computed again because there is no thinking before them any more."""
        return self.prompt - self.new - self.shared

    @property
    def page(self) -> int:
        """Tokens that are computed again because their page was not full."""
        return self.shared - self.cached


def main() -> int:
    """Measures and writes the file, or writes the table into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_of_turns", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server, with the embedded model")
    parser.add_argument("--json", type=Path, default=RESULTS / f"cost_of_turns_{today()}.json", help="the result file")
    parser.add_argument("--report", type=Path, metavar="FILE", help="measure nothing; the page from this result")
    args = parser.parse_args()
    if args.report is None:
        args.json.write_text(result_text(_measure(args.url)))
        print(f"written to {args.json}")
    else:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + table(json.loads(args.report.read_text())) + END + rest.partition(END)[2])
    return 0


def table(result: dict[str, Any]) -> str:
    """Means over the turns, in Markdown."""
    lines = [
        "| mode | thinking | answer | prompt | from the cache | new | again: no thinking before | again: page |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in result["conversations"]:
        turns = [Turn(**turn) for turn in one["turns"]]
        kind = Kind(**one["kind"])
        means = [
            statistics.mean(values)
            for values in (
                [turn.prompt for turn in turns],
                [turn.cached for turn in turns],
                [turn.new for turn in turns],
                [turn.dropped for turn in turns],
                [turn.page for turn in turns],
            )
        ]
        cells = [kind.mode, str(kind.thinking), str(kind.answer), *(f"{mean:.0f}" for mean in means)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _measure(url: str) -> dict[str, Any]:
    with httpx.Client(base_url=url, timeout=600) as client:
        return {
            "what": "cost of turns",
            "date": today(),
            "command": "python -m benchmarks.cost_of_turns",
            "commit": commit(),
            "versions": versions(),
            "conversations": [
                {"kind": asdict(kind), "turns": [asdict(turn) for turn in _converse(client, kind)]} for kind in KINDS
            ],
        }


def _converse(client: httpx.Client, kind: Kind) -> list[Turn]:
    fmt = ChatFormat.from_folder(EMBEDDED_MODEL)
    no_end = {str(token_id): -100 for token_id in fmt.control_ids}
    fields: dict[str, Any] = {"reasoning_mode": kind.mode, "return_token_ids": True, "logit_bias": no_end}
    fields |= {"temperature": 0.6, "seed": 1}
    messages: list[dict[str, str]] = [{"role": "system", "content": f"A conversation. {kind}"}]
    known: list[int] = []
    turns = []
    for number in range(TURNS):
        messages.append({"role": "user", "content": f"Question {number}: what do you say to this, in some words?"})
        least = kind.answer + kind.thinking
        limits = {"min_tokens": least, "max_tokens": least + len(fmt.close_thinking()) if kind.thinking else least}
        if kind.thinking:
            limits["thinking_token_budget"] = kind.thinking
        result = _post(client, "/v1/chat/completions", {"messages": messages, **fields, **limits})
        prompt, generated = result["prompt_token_ids"], result["choices"][0]["token_ids"]
        if known:
            usage = result["usage"]
            past = _post(client, "/tokenize", {"messages": messages[:-1], "add_generation_prompt": False, **fields})
            turns.append(
                Turn(
                    prompt=len(prompt),
                    cached=usage["prompt_tokens_details"]["cached_tokens"],
                    new=len(prompt) - past["count"] + _after_last(past["tokens"], fmt),
                    shared=_common(prompt, known[:-1]),
                    reasoning=usage["completion_tokens_details"]["reasoning_tokens"],
                )
            )
        known = [*prompt, *generated]
        messages.append({"role": "assistant", "content": result["choices"][0]["message"]["content"]})
    return turns


def _after_last(past: Sequence[int], fmt: ChatFormat) -> int:
    """How many of a conversation's tokens are the last generated one or come after it: here no turn ends by itself, so
    the end of the turn is the template's.
    """
    return past[::-1].index(fmt.end_of_turn_id) + 2


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = client.post(path, json=body)
    if response.status_code != 200:
        raise SystemExit(f"the server answered {response.status_code}: {response.text[:300]}")
    return dict(response.json())


if __name__ == "__main__":
    sys.exit(main())

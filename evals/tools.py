"""Tool calls and JSON answers of a running server, in both modes, on requests held out from training.

Five kinds: a tool that fits has to be called with just these arguments (`call`), none where none fits (`no_call`), a
result has to be told (`result`), a record has to come as JSON by itself (`json`) and under a schema (`schema`). Right
is what equals the expected value; tools, requests and records are those of tasks/tool_use.py and tasks/records.py.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from rich.table import Table

from evals.asking import Server, result_head, sampled, show_result, together, with_server
from server.cli_errors import UsageError
from tasks import conversation, records, tool_use

AT_ONCE = 32
MOST_TOKENS = 512  # several times what a right answer takes; one that repeats itself is wrong soon


@dataclass(frozen=True)
class Request:
    """A body for `/v1/chat/completions` without its mode, and what is right: a text, a JSON value, or calls."""

    kind: str
    body: dict[str, Any]
    expected: Any


@dataclass(frozen=True)
class Outcome:
    """One request in one mode; `answer` is comparable with `expected`."""

    kind: str
    mode: str
    asked: str
    expected: Any
    answer: Any
    is_right: bool


def _used(rng: random.Random) -> tuple[list[dict[str, Any]], tool_use.Use]:
    """Tools as the API takes them, and a held-out request that one of them fits."""
    while True:
        tools = tool_use.tool_set(rng)
        use = tool_use.use(rng.choice(tools), rng, held_out=True)
        if use.calls:
            return [tool.schema() for tool in tools], use


def _call(rng: random.Random) -> Request:
    tools, use = _used(rng)
    calls = [{"name": name, "arguments": arguments} for name, arguments in use.calls]
    return Request("call", {"messages": [{"role": "user", "content": use.request}], "tools": tools}, calls)


def _result(rng: random.Random) -> Request:
    tools, use = _used(rng)
    messages = tool_use.exchange(use, (f"call_{number}" for number in count()))
    return Request("result", {"messages": messages[:-1], "tools": tools}, use.reply)


def _no_call(rng: random.Random) -> Request:
    talk = conversation.draw(rng, ("it",))
    tools = [tool.schema() for tool in tool_use.tool_set(rng)]
    return Request("no_call", {"messages": [{"role": "user", "content": talk.prompt}], "tools": tools}, [])


def _json(rng: random.Random) -> Request:
    extraction = records.draw(rng, held_out=True)
    return Request("json", {"messages": [{"role": "user", "content": extraction.request}]}, extraction.record)


def _schema(rng: random.Random) -> Request:
    request = _json(rng)
    types = {int: "integer", float: "number", str: "string"}
    schema = {
        "type": "object",
        "properties": {key: {"type": types[type(value)]} for key, value in request.expected.items()},
        "required": list(request.expected),
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "record", "schema": schema}}
    return Request("schema", {**request.body, "response_format": form}, request.expected)


KINDS: dict[str, Callable[[random.Random], Request]] = {
    "call": _call,
    "no_call": _no_call,
    "result": _result,
    "json": _json,
    "schema": _schema,
}


def run(args: argparse.Namespace) -> int:
    """Asks, scores, prints the table and, where asked to, writes the result. Raises UsageError."""
    names = tuple(KINDS) if args.families is None else tuple(args.families.split(","))
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise UsageError(f"--families: {unknown[0]!r} is none of {', '.join(KINDS)}")
    result = with_server(args.url, AT_ONCE, lambda server: evaluate(server, names, args.items, args.seed))
    show_result(result, _table(result), args.json)
    return 0


async def evaluate(server: Server, names: Sequence[str], items: int, seed: int) -> dict[str, Any]:
    """The result of `twogear eval tools` with so many requests of these kinds."""
    rng = random.Random(seed)
    requests = [KINDS[names[index % len(names)]](rng) for index in range(items)]
    modes = list(await server.modes())
    version, outcomes = await _measure(server, requests, modes)
    return {
        **result_head("tools", f"--items {items} --seed {seed} --families {','.join(names)}", version),
        "summary": {mode: _share(outcomes, mode) for mode in modes},
        "kinds": {name: {mode: _share(outcomes, mode, name) for mode in modes} for name in names},
        "asked": len(outcomes),
        "outcomes": [asdict(outcome) for outcome in sampled(outcomes, lambda outcome: outcome.is_right)],
    }


async def _measure(
    server: Server, requests: Sequence[Request], modes: Sequence[str]
) -> tuple[dict[str, Any], list[Outcome]]:
    version = await server.version()
    return version, await together("asking", (_ask(server, request, mode) for request in requests for mode in modes))


async def _ask(server: Server, request: Request, mode: str) -> Outcome:
    reply = await server.complete({**request.body, "reasoning_mode": mode, "max_completion_tokens": MOST_TOKENS})
    answer = _read(request.kind, reply["choices"][0]["message"])
    return Outcome(
        kind=request.kind,
        mode=mode,
        asked=request.body["messages"][0]["content"],
        expected=request.expected,
        answer=answer,
        is_right=answer == request.expected,
    )


def _read(kind: str, message: dict[str, Any]) -> Any:
    """What a message says, in the form of the kind's expected value; None where it cannot be read so."""
    content = message["content"] or ""
    if kind == "result":
        return content
    try:
        if kind in ("json", "schema"):
            return json.loads(content)
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        return [{"name": f["name"], "arguments": json.loads(f["arguments"])} for f in functions]
    except json.JSONDecodeError:
        return None


def _share(outcomes: Sequence[Outcome], mode: str, kind: str | None = None) -> float:
    right = [outcome.is_right for outcome in outcomes if outcome.mode == mode and kind in (None, outcome.kind)]
    return round(sum(right) / len(right), 4)


def _table(result: dict[str, Any]) -> Table:
    modes = list(result["summary"])
    table = Table("kind", *modes, title="right on held-out requests")
    for name, shares in [*result["kinds"].items(), ("all", result["summary"])]:
        if name == "all":
            table.add_section()
        table.add_row(name, *(f"{shares[mode]:.1%}" for mode in modes))
    return table

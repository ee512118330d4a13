"""Conversations in which tools are called when they fit: which tools there are, a request, the call, its result.

Rendering is the chat format's matter, values are values.py's.
"""

import hashlib
import json
import random
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from chat_templates.messages import Message
from tasks import values

HELD_OUT_SHARE = 8
_MADE_UP_SHARE = 0.25
_PLAIN_RESULT_SHARE = 0.3
_MISSING_SHARE = 0.06
_TWO_CALLS_SHARE = 0.1
_LARGEST_SET = 3


class Parameter(NamedTuple):
    """A parameter of a tool: what its values are and what it is called here; `slot` is its place in texts."""

    slot: str
    name: str
    pool: str


class ToolKind(NamedTuple):
    """A tool as one conversation knows it; `data` holds how it is asked for and what it gives back."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    data: dict[str, Any]

    def schema(self) -> dict[str, Any]:
        """The tool as OpenAI describes it."""
        properties = {p.name: {"type": _types(p.pool)} for p in self.parameters}
        parameters = {"type": "object", "properties": properties, "required": list(properties)}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


class Use(NamedTuple):
    """A request that fits a tool: the calls it takes, what they give back, and what is said of that.

    `calls` is empty where the request leaves out what a call needs; then `reply` asks for it.
    """

    request: str
    thought: str
    calls: tuple[tuple[str, dict[str, values.Value]], ...]
    results: tuple[str, ...]
    reply: str


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads((files("tasks") / "data" / "tools.toml").read_text())


def _types(pool: str) -> str:
    return {"small": "integer", "number": "integer", "degrees": "integer", "amount": "number"}.get(pool, "string")


def is_held_out(arguments: list[values.Value]) -> bool:
    """Whether calls with these arguments belong to the held-out set."""
    return hashlib.sha256(json.dumps(sorted(map(str, arguments))).encode()).digest()[0] % HELD_OUT_SHARE == 0


def _known(data: dict[str, Any], rng: random.Random) -> ToolKind:
    parameters = tuple(Parameter(p["slot"], rng.choice(p["names"]), p["pool"]) for p in data["parameters"])
    return ToolKind(rng.choice(data["names"]), rng.choice(data["descriptions"]), parameters, data)


def _made_up(rng: random.Random) -> ToolKind:
    data = _data()["made_up"]
    verb = rng.choice(data["verbs"]) if rng.random() < 0.85 else values.made_up_word(rng)
    noun = rng.choice(data["nouns"]) if rng.random() < 0.85 else values.made_up_word(rng)
    name = rng.choice((f"{verb}_{noun}", f"{verb}{noun.capitalize()}", noun, noun.capitalize()))
    chosen = rng.sample(data["parameters"], rng.randint(1, 3))
    parameters = tuple(Parameter(key, key, pool) for key, pool in chosen)
    description = rng.choice((f"{verb.capitalize()} a {noun}", f"{verb.capitalize()} the {noun}", f"The {noun}"))
    return ToolKind(name, description, parameters, {**data, "verb": verb.capitalize(), "noun": noun})


def tool_set(rng: random.Random) -> list[ToolKind]:
    """One to three tools of different names."""
    count = rng.choice((1, 1, 2, 2, _LARGEST_SET))
    known = rng.sample(_data()["tool"], count)
    tools = [_made_up(rng) if rng.random() < _MADE_UP_SHARE else _known(data, rng) for data in known]
    return list({tool.name: tool for tool in tools}.values())


def _listed(arguments: dict[str, values.Value], rng: random.Random) -> str:
    joint = rng.choice((" ", " = ", "=", ": "))
    pairs = [f"{key}{joint}{value}" for key, value in arguments.items()]
    return rng.choice((", ", " and ")).join(pairs)


def _slots(tool: ToolKind, rng: random.Random, *, held_out: bool) -> dict[str, values.Value]:
    while True:
        slots = {p.slot: values.draw(p.pool, rng) for p in tool.parameters}
        if is_held_out(list(slots.values())) == held_out:
            return slots


def _arguments(tool: ToolKind, slots: dict[str, values.Value]) -> dict[str, values.Value]:
    return {p.name: slots[p.slot] for p in tool.parameters}


def _use_made_up(tool: ToolKind, rng: random.Random, *, held_out: bool) -> Use:
    arguments = _arguments(tool, _slots(tool, rng, held_out=held_out))
    ask: str = rng.choice(tool.data["asks"])
    request = ask.format(name=tool.name, values=_listed(arguments, rng), verb=tool.data["verb"], noun=tool.data["noun"])
    result = str(values.draw(rng.choice(("number", "word", "state")), rng))
    thought = tool.data["thought"].format(name=tool.name)
    return Use(request, thought, ((tool.name, arguments),), (result,), f"The result is {result}.")


def _outcome(tool: ToolKind, slots: dict[str, values.Value], rng: random.Random) -> tuple[str, str]:
    """What a call gives back, and the sentence about it."""
    fields = {key: values.draw(pool, rng) for key, pool in tool.data["result"].items()}
    if rng.random() < _PLAIN_RESULT_SHARE:
        result = ", ".join(map(str, fields.values()))
        return result, f"The result is {result}."
    return json.dumps(fields, ensure_ascii=False), tool.data["reply"].format_map(slots | fields)


def _use_twice(tool: ToolKind, rng: random.Random, *, held_out: bool) -> Use:
    """Two calls at once, for what is asked about two places or persons."""
    (parameter,) = tool.parameters
    both = [_slots(tool, rng, held_out=held_out) for _ in range(2)]
    joined = {parameter.slot: " and ".join(str(slots[parameter.slot]) for slots in both)}
    results, replies = zip(*(_outcome(tool, slots, rng) for slots in both), strict=True)
    calls = tuple((tool.name, _arguments(tool, slots)) for slots in both)
    request = rng.choice(tool.data["asks"]).format_map(joined)
    return Use(request, tool.data["thought"].format_map(joined), calls, results, " ".join(replies))


def use(tool: ToolKind, rng: random.Random, *, held_out: bool = False) -> Use:
    """A request that fits `tool`."""
    if "names" not in tool.data:
        return _use_made_up(tool, rng, held_out=held_out)
    if rng.random() < _MISSING_SHARE:
        question = tool.data["question"]
        return Use(rng.choice(tool.data["missing"]), "Something is missing. I ask.", (), (), question)
    if [p.pool for p in tool.parameters] in (["city"], ["name"], ["country"]) and rng.random() < _TWO_CALLS_SHARE:
        return _use_twice(tool, rng, held_out=held_out)
    slots = _slots(tool, rng, held_out=held_out)
    result, reply = _outcome(tool, slots, rng)
    request = rng.choice(tool.data["asks"]).format_map(slots)
    thought = tool.data["thought"].format_map(slots)
    return Use(request, thought, ((tool.name, _arguments(tool, slots)),), (result,), reply)


def exchange(use: Use, call_ids: Iterator[str]) -> list[Message]:
    """The messages of a use, thoughts in `reasoning_content`: the request, the calls and their results, the reply."""
    request: Message = {"role": "user", "content": use.request}
    if not use.calls:
        return [request, {"role": "assistant", "content": use.reply, "reasoning_content": use.thought}]
    called = [
        {"id": next(call_ids), "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for name, arguments in use.calls
    ]
    names = " and ".join(f'"{name}"' for name in dict.fromkeys(name for name, _ in use.calls))
    thought = f"{use.thought} I call {names}."
    calling: Message = {"role": "assistant", "content": None, "tool_calls": called, "reasoning_content": thought}
    results: list[Message] = [
        {"role": "tool", "tool_call_id": call["id"], "content": result}
        for call, result in zip(called, use.results, strict=True)
    ]
    reply: Message = {"role": "assistant", "content": use.reply, "reasoning_content": "The result is there. I say it."}
    return [request, calling, *results, reply]

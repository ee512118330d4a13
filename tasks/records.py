"""Requests for a record as JSON: a text, the keys that are wanted, and the object. Values are values.py's matter."""

import hashlib
import json
import random
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from tasks import values

HELD_OUT_SHARE = 8
_NAMED_KEYS_SHARE = 0.7
_ALL_KEYS_SHARE = 0.6


class Extraction(NamedTuple):
    """A request with the record it asks for, in the order of the keys."""

    request: str
    record: dict[str, values.Value]

    @property
    def answer(self) -> str:
        """The record as JSON, spaced as Python spaces it."""
        return json.dumps(self.record, ensure_ascii=False)

    @property
    def thought(self) -> str:
        """Each key with its value, a line each."""
        return "\n".join(f"{key}: {value}" for key, value in self.record.items())


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads((files("tasks") / "data" / "records.toml").read_text())


def is_held_out(record: dict[str, values.Value]) -> bool:
    """Whether a record belongs to the held-out set, by a hash of its values."""
    text = json.dumps(sorted(map(str, record.values())))
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_SHARE == 0


def _listed(keys: list[str], rng: random.Random) -> str:
    if len(keys) == 1:
        return keys[0]
    return f"{', '.join(keys[:-1])}{rng.choice((' and ', ', '))}{keys[-1]}"


def draw(rng: random.Random, *, held_out: bool = False) -> Extraction:
    """One request: with its keys named, in any order, or without them and then all in their usual order."""
    kind = rng.choice(_data()["record"])
    while True:
        record = {key: values.draw(pool, rng) for key, pool in kind["fields"].items()}
        if is_held_out(record) == held_out:
            break
    text = rng.choice(kind["texts"]).format_map(record)
    requests = _data()["requests"]
    if rng.random() >= _NAMED_KEYS_SHARE:
        return Extraction(rng.choice(requests["without_keys"]).format(kind=kind["kind"], text=text), record)
    keys = list(record)
    if rng.random() >= _ALL_KEYS_SHARE:
        keys = rng.sample(keys, rng.randint(1, len(keys)))
    request = rng.choice(requests["with_keys"]).format(keys=_listed(keys, rng), text=text)
    return Extraction(request, {key: record[key] for key in keys})


def ask_for_json(question: str, rng: random.Random) -> str:
    """A question whose answer shall be the value of the key `answer`."""
    request: str = rng.choice(_data()["requests"]["answers"])
    return request.format(question=question)


def json_answer(answer: str) -> str:
    """`answer` under the key `answer`: a number where it is one."""
    try:
        number = json.loads(answer)
    except json.JSONDecodeError:
        number = answer
    return json.dumps({"answer": number}, ensure_ascii=False)

"""A running request whose thinking a client closes: the same of every API that has `control`."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

END = {"action": "end_reasoning"}
ID = re.compile(r'"id":"((?:chatcmpl-|msg_|resp_)\w+)"')


class Closed(NamedTuple):
    """`id` of what ran, what `control` told of it, its whole stream; what control says later, and of another action."""

    id: str
    told: dict[str, Any]
    text: str
    over: httpx.Response
    unknown: httpx.Response


def close_thinking(url: str, path: str, body: Mapping[str, Any]) -> Closed:
    """Asks for a stream at `path` of the server at `url`, and closes its thinking once that has begun."""
    with httpx.Client(base_url=url, timeout=60) as http:
        with http.stream("POST", path, json=body) as response:
            parts = response.iter_text()
            text = ""
            while (found := ID.search(text)) is None:
                text += next(parts)
            control = f"{path}/{found[1]}/control"
            told = http.post(control, json=END).json()
            text += "".join(parts)
        return Closed(found[1], told, text, http.post(control, json=END), http.post(control, json={"action": "stop"}))

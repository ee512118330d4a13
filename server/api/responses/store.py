"""The responses that clients may come back to: by id, with `previous_response_id`, and items of theirs by reference.

Kept in this process, within limits of count and bytes. What was used longest ago leaves first, and its id is
remembered, so that who asks for it learns what became of it. A client sees its own only.
"""

from collections import OrderedDict
from collections.abc import Sequence
from threading import RLock
from typing import Literal, NamedTuple, Protocol
from weakref import WeakValueDictionary

import orjson

from server.api.responses.events_log import EventLog, LogBytes
from server.errors import JsonObject, UnknownResponseError

MOST_LEFT = 65_536
"""How many ids of responses that are gone are remembered."""
ENTRY_BYTES = 2048
ITEM_BYTES = 256
"""What an entry, and the id of an item in it, take beside their JSON, about."""


class StoredInput(NamedTuple):
    """The items of a response's own input as JSON, and their ids."""

    json: bytes
    ids: tuple[str, ...]

    @classmethod
    def of(cls, items: Sequence[JsonObject]) -> "StoredInput":
        """Of items that have ids."""
        return cls(orjson.dumps(items), tuple(str(item["id"]) for item in items))


class Stored(NamedTuple):
    """A response as JSON, the items of its own input as JSON, those of its output without their log-probabilities, and
    the id of the response before it; its events, if they are kept.
    """

    client: str
    response: bytes
    input: bytes
    output: bytes
    previous: str | None
    item_ids: tuple[str, ...]
    log: EventLog | None = None

    @property
    def size(self) -> int:
        """Bytes, about."""
        events = 0 if self.log is None else self.log.size
        return ENTRY_BYTES + len(self.response) + self.items_size + ITEM_BYTES * len(self.item_ids) + events

    @property
    def items_size(self) -> int:
        """Bytes of the JSON of `items`."""
        return len(self.input) + len(self.output)

    def items(self) -> list[JsonObject]:
        """Those of the input, and those of the output."""
        return [*orjson.loads(self.input), *orjson.loads(self.output)]


def _without_logprobs(item: JsonObject) -> JsonObject:
    """An item of an output as a conversation that goes on needs it."""
    content = item.get("content")
    if not isinstance(content, list):
        return item
    return {**item, "content": [{**part, "logprobs": []} if part.get("logprobs") else part for part in content]}


Left = Literal["evicted", "deleted"]


class Running(Protocol):
    """A response under way; `answer.py` has the rest."""

    client: str
    is_over: bool
    log: EventLog | None

    def snapshot(self) -> JsonObject:
        """The response so far."""
        ...

    def cancel(self) -> JsonObject:
        """Notes that the run was told to end; the response so far."""
        ...


class ResponseStore:
    """Keeps at most `most` responses of at most `most_bytes` in all, and knows those that are under way."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.size = 0
        self._lock = RLock()  # a long response is put together, and kept, on another thread
        self._running: WeakValueDictionary[str, Running] = WeakValueDictionary()
        self._most = most
        self._most_bytes = most_bytes
        self._log_bytes = LogBytes(most_bytes // 2)
        self._by_id: OrderedDict[str, Stored] = OrderedDict()
        self._of_item: dict[tuple[str, str], str] = {}
        self._left: OrderedDict[str, Left] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def is_on(self) -> bool:
        """Whether anything is kept."""
        return self._most > 0 and self._most_bytes > 0

    def began(self, response_id: str, running: Running) -> None:
        """A response is under way until it is over, or nobody has it any more."""
        self._running[response_id] = running

    def under_way(self, response_id: str, client: str) -> Running | None:
        """The response, if it runs and is the client's."""
        running = self._running.get(response_id)
        return running if running is not None and running.client == client and not running.is_over else None

    def put(self, response: JsonObject, inputs: StoredInput, client: str) -> None:
        """Keeps a response and its input."""
        with self._lock:
            output = response["output"]
            assert isinstance(output, list)
            stored = Stored(
                client,
                orjson.dumps(response),
                inputs.json,
                orjson.dumps([_without_logprobs(item) for item in output]),
                None if response["previous_response_id"] is None else str(response["previous_response_id"]),
                (*inputs.ids, *(str(item["id"]) for item in output)),
            )
            response_id = str(response["id"])
            if stored.size > self._most_bytes:
                self._has_left(response_id, "evicted")
                return
            self._by_id[response_id] = stored
            self.size += stored.size
            self._of_item |= {(client, item): response_id for item in stored.item_ids}
            self._make_room()

    def new_log(self) -> EventLog:
        """For the events of a response that is to be stored."""
        return EventLog(self._log_bytes)

    def keep_events(self, response_id: str, log: EventLog) -> None:
        """Keeps the events of a response that is stored, unless they alone are too many."""
        with self._lock:
            stored = self._by_id.get(response_id)
            if stored is None or stored.size + log.size > self._most_bytes:
                return
            self._by_id[response_id] = stored._replace(log=log)
            self.size += log.size
            self._make_room()

    def get(self, response_id: str, client: str) -> Stored:
        """Raises UnknownResponseError, which says whether it was there once."""
        with self._lock:
            stored = self._by_id.get(response_id)
            if stored is None or stored.client != client:
                raise UnknownResponseError(f"There is no response {response_id[:64]!r}: {self._why_not(response_id)}.")
            self._by_id.move_to_end(response_id)
            return stored

    def delete(self, response_id: str, client: str) -> None:
        """Raises UnknownResponseError."""
        with self._lock:
            self.get(response_id, client)
            self._remove(response_id, "deleted")

    def conversation(self, response_id: str, client: str) -> list[Stored]:
        """The response and all before it, the oldest first; raises UnknownResponseError."""
        found: list[Stored] = []
        following: str | None = response_id
        while following is not None:
            found.append(self.get(following, client))
            following = found[-1].previous
        return found[::-1]

    def holder(self, item_id: str, client: str) -> Stored | None:
        """The response that has the item of that id in its input or output; None where there is none."""
        with self._lock:
            response_id = self._of_item.get((client, item_id))
            return None if response_id is None else self._by_id[response_id]

    def _make_room(self) -> None:
        while self.size > self._most_bytes or len(self._by_id) > self._most:
            self._remove(next(iter(self._by_id)), "evicted")

    def _remove(self, response_id: str, how: Left) -> None:
        stored = self._by_id.pop(response_id)
        self.size -= stored.size
        for item in stored.item_ids:
            if self._of_item.get((stored.client, item)) == response_id:
                del self._of_item[stored.client, item]
        self._has_left(response_id, how)

    def _has_left(self, response_id: str, how: Left) -> None:
        self._left[response_id] = how
        if len(self._left) > MOST_LEFT:
            self._left.popitem(last=False)

    def _why_not(self, response_id: str) -> str:
        how = self._left.get(response_id)
        if how == "deleted":
            return "it was deleted"
        if how == "evicted":
            return (
                f"it has left the store, which keeps the {self._most} used last and at most {self._most_bytes} bytes; "
                "send the conversation itself"
            )
        return "it was not stored here, or did not end well"

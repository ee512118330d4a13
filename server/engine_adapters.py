"""Which LoRA adapters an engine is to have: loaded one by one, and all of them again whenever it is started anew.

Knows the messages, not the engine's life; the supervisor tells it of that.
"""

import asyncio
from collections.abc import Callable, Sequence

from engine.messages import Adapter, AdapterLoaded, LoadAdapter, ToEngine, UnloadAdapter
from server.engine_client import EngineUnavailable, RequestFailed

Send = Callable[[ToEngine], None]


class EngineAdapters:
    """Those of `adapters`, and what comes to them. `send` has the engine get a message, if there is one."""

    def __init__(self, adapters: Sequence[Adapter], send: Send) -> None:
        self._kept = {adapter.id: adapter for adapter in adapters}
        self._send = send
        self._awaited = set[int]()  # of an engine that comes up
        self._loading: dict[int, asyncio.Future[None]] = {}

    @property
    def is_complete(self) -> bool:
        """Whether the engine has answered for all that it was to have from its start."""
        return not self._awaited

    def begin(self) -> None:
        """An engine is up: it gets all of them."""
        self._awaited = set(self._kept)
        for adapter in self._kept.values():
            self._send(LoadAdapter(adapter))

    async def load(self, adapter: Adapter) -> None:
        """Has the engine load one more; raises RequestFailed where it cannot, and EngineUnavailable where it ends."""
        loading = self._loading[adapter.id] = asyncio.get_running_loop().create_future()
        self._send(LoadAdapter(adapter))
        try:
            await loading
        finally:
            del self._loading[adapter.id]
        self._kept[adapter.id] = adapter

    def unload(self, adapter_id: int) -> None:
        """Has the engine forget one; unknown ids are ignored."""
        self._kept.pop(adapter_id, None)
        self._send(UnloadAdapter(adapter_id))

    def take(self, message: AdapterLoaded) -> str | None:
        """The engine's answer. In words what is wrong with an adapter that it was to have from its start."""
        loading = self._loading.get(message.adapter_id)
        if loading is not None and not loading.done():
            if message.error is None:
                loading.set_result(None)
            else:
                loading.set_exception(RequestFailed(message.error))
        self._awaited.discard(message.adapter_id)
        kept = self._kept.get(message.adapter_id)
        if kept is None or message.error is None:
            return None
        return f"the adapter {kept.name!r} cannot be loaded: {message.error}"

    def fail(self, error: EngineUnavailable) -> None:
        """The engine has ended."""
        for loading in self._loading.values():
            if not loading.done():
                loading.set_exception(error)

"""Responses that are made whether or not a client waits for them; they end with the server."""

import asyncio
from contextlib import aclosing

from server.api.common.answering import Pieces, stream
from server.api.responses.answer import ResponseAnswer
from server.api.responses.store import ResponseStore
from server.errors import ApiError
from server.telemetry.record import RequestRecord


class Background:
    """Makes responses in tasks of their own, each to the end, and has the store keep their events."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, pieces: Pieces, answer: ResponseAnswer, record: RequestRecord) -> None:
        """The request of `record` ends with its response. Raises ApiError where it cannot even wait for its turn."""
        taken = asyncio.Event()
        task = asyncio.create_task(self._make(pieces, answer, record, taken))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.sleep(0)  # the task's first step takes a place in the queue, or finds that there is none
        if task.done():
            task.result()
        taken.set()

    async def _make(self, pieces: Pieces, answer: ResponseAnswer, record: RequestRecord, taken: asyncio.Event) -> None:
        log = answer.log
        with record.under_way():
            try:
                async with aclosing(stream(pieces, answer)) as events:
                    async for _ in events:
                        if log is not None:
                            log.tell()
            except ApiError as error:
                if not taken.is_set():
                    raise
                answer.error(error)
            finally:
                if log is not None:
                    log.end()
        if log is not None:
            self._store.keep_events(answer.id, log)

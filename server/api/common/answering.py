"""Answers a request: the pieces of its choices gathered to one response, or passed on as a stream.

Response and stream are built from the same pieces, which is why they are equal. What they look like is each API's own.
"""

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Protocol, TypeVar

from starlette.requests import ClientDisconnect

from server.core.events import Piece
from server.core.serving import Serving
from server.errors import ApiError, JsonObject
from server.http.responses import Encoded, encoded
from server.offload import PROMPTS, offload_long

T = TypeVar("T")
LONG_ENTRIES = 4096
"""Log-probabilities from which putting them into words would hold up other requests' tokens."""
Pieces = AsyncGenerator[Piece, None]


class Gatherer(Protocol):
    """Puts the pieces of a response together."""

    def add(self, piece: Piece) -> None:
        """Takes the next piece."""
        ...

    def response(self) -> JsonObject:
        """The whole response, after the last piece."""
        ...


class EventWriter(Protocol):
    """Writes the events of a stream, encoded; any of them may be empty."""

    def begin(self) -> bytes:
        """What comes before the first piece."""
        ...

    def piece(self, piece: Piece) -> bytes:
        """What a piece adds."""
        ...

    def finish(self) -> bytes:
        """What comes after the last piece."""
        ...

    def error(self, error: ApiError) -> bytes:
        """What tells of an error, and ends the stream."""
        ...


async def complete(pieces: Pieces, gatherer: Gatherer) -> JsonObject | Encoded:
    """The whole response; raises ApiError."""
    is_long = False
    async with aclosing(pieces):
        async for piece in pieces:
            if piece.entries < LONG_ENTRIES:
                gatherer.add(piece)
            else:
                is_long = True
                await _aside(partial(gatherer.add, piece))
    return await _aside(lambda: encoded(gatherer.response())) if is_long else gatherer.response()


async def _aside(work: Callable[[], T]) -> T:
    """Away from the event loop."""
    return await offload_long(PROMPTS, work)


async def stream(pieces: Pieces, writer: EventWriter) -> AsyncGenerator[bytes, None]:
    """The response as server-sent events. Raises ApiError before the first event; later, the writer tells the error."""
    started = False
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                before = b"" if started else writer.begin()
                if piece.entries < LONG_ENTRIES:
                    events = before + writer.piece(piece)
                else:
                    events = before + await _aside(partial(writer.piece, piece))
                if events:
                    started = True
                    yield events
    except ApiError as error:
        if not started:
            raise
        yield writer.error(error)
        return
    yield writer.finish()


@contextmanager
def rejections(serving: Serving) -> Iterator[None]:
    """Counts a request that ends within the block, before it reaches the engine: by an error, or because its client
    left.
    """
    try:
        yield
    except ApiError:
        serving.metrics.refused("rejected")
        raise
    except ClientDisconnect:
        serving.metrics.refused("cancelled")
        raise

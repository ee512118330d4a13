"""What goes between a front end and the server behind it: ASGI's messages, each with the number of its request.

The first frame to a front end is its settings as JSON (`encode_settings`); all others are these messages.
"""

import struct
from pathlib import Path
from typing import Any

import msgspec

from server.settings import Settings

WINDOW = 131_072
"""Bytes of an answer that may be on their way to a front end; the kernel keeps as many of a connection."""
Headers = list[tuple[bytes, bytes]]
_HEADER = struct.Struct("!I")


class Message(msgspec.Struct, array_like=True, tag=True, gc=False):
    """`call` numbers the requests of one front end."""

    call: int


class Call(Message):
    """A request has come: what ASGI's scope says of it. `asks`: its body is sent only once it is wanted."""

    method: str
    path: str
    raw_path: bytes
    query_string: bytes
    headers: Headers
    client: tuple[str, int] | None
    server: tuple[str, int | None] | None
    scheme: str
    http_version: str
    root_path: str
    asks: bool


class Body(Message):
    """A part of the request's body."""

    part: bytes
    more: bool


class Left(Message):
    """The client is gone."""


class Took(Message):
    """The client's connection took so many bytes more of the answer."""

    size: int


class Want(Message):
    """The next part of the body is wanted."""


class Start(Message):
    """The answer begins."""

    status: int
    headers: Headers


class Part(Message):
    """A part of the answer."""

    part: bytes
    more: bool


class Broken(Message):
    """The answer ends here, though it is not whole."""


FromFrontEnd = Call | Body | Left | Took
ToFrontEnd = Want | Start | Part | Broken
_encoder = msgspec.msgpack.Encoder()
decode_from_front_end = msgspec.msgpack.Decoder(FromFrontEnd).decode
decode_to_front_end = msgspec.msgpack.Decoder(ToFrontEnd).decode


def framed(payload: bytes) -> bytes:
    """As it goes over the wire; `engine.transport.FrameBuffer` cuts it out again."""
    return _HEADER.pack(len(payload)) + payload


def frame(message: FromFrontEnd | ToFrontEnd) -> bytes:
    """A message as it goes over the wire."""
    return framed(_encoder.encode(message))


def encode_settings(settings: Settings) -> bytes:
    """For `decode_settings`."""
    return msgspec.json.encode(settings, enc_hook=str)


def decode_settings(payload: bytes) -> Settings:
    """What `encode_settings` was given."""
    return msgspec.json.decode(payload, type=Settings, dec_hook=_path)


def _path(kind: type[Any], value: Any) -> Any:
    assert kind is Path
    return Path(value)

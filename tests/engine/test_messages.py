"""The boundary's messages and their version change together."""

import hashlib
import json
from typing import get_args

import msgspec
import pytest

from engine.messages import (
    PROTOCOL_VERSION,
    FromEngine,
    Generate,
    Sampling,
    ToEngine,
    Unreadable,
    decode_to_engine,
    encode,
)

SHAPES = {13: "50d227c63a939e86"}
"""By version: a digest of all messages with their fields and types, as `shape` makes it."""


def shape() -> str:
    schemas = msgspec.json.schema_components([*get_args(ToEngine), *get_args(FromEngine)])
    text = json.dumps(schemas, sort_keys=True)
    bare = json.loads(text, object_hook=lambda entry: {key: entry[key] for key in entry if key != "description"})
    return hashlib.sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()[:16]


def test_a_change_of_the_messages_changes_the_version() -> None:
    assert SHAPES.get(PROTOCOL_VERSION) == shape(), (
        "the messages have changed: raise PROTOCOL_VERSION and put the new digest here"
    )


def test_a_value_that_no_request_may_have_is_told_with_the_request() -> None:
    bad = encode(Generate("id", [1], Sampling(max_tokens=1, temperature=-1.0)))  # encoding checks no ranges
    unreadable = decode_to_engine(bad)
    assert isinstance(unreadable, Unreadable)
    assert unreadable.request_id == "id"
    assert "temperature" in unreadable.reason
    with pytest.raises(msgspec.ValidationError):
        decode_to_engine(msgspec.msgpack.encode({"type": "Abort"}))

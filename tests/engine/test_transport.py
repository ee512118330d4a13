"""Messages survive any cutting of the byte stream; the engine's end waits, and notices that the other end is gone."""

import socket
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.messages import Abort, Generate, Sampling, Shutdown, Stats, ToEngine, decode_to_engine
from engine.transport import Connection, FrameBuffer, frame

MESSAGES: list[ToEngine] = [
    Generate("a", [1, 2, 70000], Sampling(max_tokens=3, seed=7)),
    Abort(""),
    Shutdown(),
    Abort("x" * 5000),
]


@given(cuts=st.lists(st.integers(0, 6000), max_size=20))
def test_any_cutting_of_the_stream_gives_the_same_messages(cuts: list[int]) -> None:
    data = b"".join(map(frame, MESSAGES))
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    frames = FrameBuffer()
    received = [decode_to_engine(payload) for start, end in pairwise(edges) for payload in frames.feed(data[start:end])]
    assert received == MESSAGES


def test_a_connection_receives_what_is_there_and_does_not_wait() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(theirs)
        assert connection.receive(0) == []
        for message in MESSAGES:
            ours.sendall(frame(message))
        assert connection.receive(0) == MESSAGES
        assert connection.receive(0) == []


def test_a_connection_notices_that_the_other_end_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        connection = Connection(theirs)
        watch = threading.Thread(target=connection.wait_for_hang_up)
        watch.start()
        ours.sendall(frame(Shutdown())[:3])
        ours.close()
        watch.join()
        with pytest.raises(ConnectionError):
            connection.receive(None)
        with pytest.raises(ConnectionError):
            connection.send(Stats(0, 0, ()))

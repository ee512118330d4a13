"""What stands in the engine's place where front ends are measured, and which process counts as what."""

import socket
import threading

import pytest

from benchmarks.host import front_ends
from benchmarks.host.scripted_engine import ScriptedEngine
from engine.messages import Abort, Delta, Generate, Ready, Sampling, Shutdown, Step, decode_from_engine
from engine.transport import Connection, FrameBuffer, frame


def test_the_scripted_engine_draws_a_token_for_each_request_in_every_step() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        thread = threading.Thread(target=ScriptedEngine(Connection(theirs), 0.0).run)
        thread.start()
        for name, tokens in (("a", 3), ("b", 1 << 30)):
            ours.sendall(frame(Generate(name, [1], Sampling(max_tokens=tokens))))
        frames, told = FrameBuffer(), dict[str, list[Delta]]()
        first = True
        while "a" not in told or told["a"][-1].finish is None:
            for payload in frames.feed(ours.recv(1 << 16)):
                message = decode_from_engine(payload)
                assert isinstance(message, Ready) is first
                first = False
                for delta in message.deltas if isinstance(message, Step) else ():
                    told.setdefault(delta.request_id, []).append(delta)
        ours.sendall(frame(Abort("b")))
        ours.sendall(frame(Shutdown()))
        thread.join()
    assert [(len(delta.token_ids), delta.cached_tokens, delta.finish) for delta in told["a"]] == [
        (1, 0, None),
        (1, None, None),
        (1, None, "length"),
    ]


@pytest.mark.parametrize("name", front_ends.SERVERS)
def test_every_server_is_started_with_what_it_is_named_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_ends, "checkpoint", lambda _: "model")
    start = front_ends.start_of(name, 1234, 12.0, 20.0)
    words = " ".join(start.command)
    assert ("scripted_engine" in words) == name.startswith("scripted")
    assert (f"{1 << 30}, 0.02" in words) == name.endswith("-unpaced")
    assert ("MANY, 0.02" in words) == (name in {"twogear", "scripted", "scripted-two"})
    assert ("--api-server-count 2" in words) == (name == "scripted-two")
    assert ("VLLM_USE_RUST_FRONTEND" in start.environment) == (name == "vllm-rust")
    assert ("vllm.entrypoints.cli.main serve" in words) == (name == "vllm-rust")

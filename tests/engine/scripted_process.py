"""An engine process without a model: it speaks the messages, and plays a fault at the third request.

Run by `tests.engine.test_faults` in the place of `python -m engine`; the fault is named in FAULT, and comes once if
ONCE names a file that is not there yet. An adapter is whatever file is there.
"""

import argparse
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from engine import DUMP_SIGNAL
from engine.messages import (
    PROTOCOL_VERSION,
    AdapterLoaded,
    Delta,
    Failed,
    Generate,
    LoadAdapter,
    Loading,
    Ready,
    Shutdown,
    Step,
)
from engine.transport import Connection

TOKENS = 5


def endless_loop() -> None:
    while True:
        pass


def endless_native_code() -> None:
    """Holds the GIL meanwhile, as PyDLL does."""
    ctypes.PyDLL(None).sleep(100_000)


def deadlock() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(100_000)  # what comes after it was continued, to write its stacks


def crash() -> None:
    ctypes.string_at(0)


FAULTS = {one.__name__: one for one in (endless_loop, endless_native_code, deadlock, stop, crash)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket-fd", type=int)
    sock = socket.socket(fileno=parser.parse_known_args()[0].socket_fd)
    connection = Connection(sock)
    fault, once = os.environ["FAULT"], Path(os.environ["ONCE"])
    faulthandler.enable()
    faulthandler.register(DUMP_SIGNAL)
    print("the engine begins", flush=True)
    connection.send(Loading("loading the weights", 0.5))
    if fault == "load":
        time.sleep(100_000)
    connection.send(Ready(PROTOCOL_VERSION, "scripted", "Scripted", 100, 8, (1,), ()))
    requests = 0
    while True:
        for message in connection.receive(None):
            match message:
                case Shutdown():
                    return
                case LoadAdapter(adapter):
                    if not Path(adapter.path).is_fifo():  # of such it never says a word
                        error = None if Path(adapter.path).exists() else "it is gone"
                        connection.send(AdapterLoaded(adapter.id, error))
                case Generate(request_id):
                    requests += 1
                    connection.send(Step([Delta(request_id, [7], 0)]))
                    if requests == 3 and not once.exists():
                        once.touch()
                        play(fault, connection, sock)
                    for _ in range(TOKENS - 2):
                        connection.send(Step([Delta(request_id, [7])]))
                    connection.send(Step([Delta(request_id, [7], finish="length")]))


def play(fault: str, connection: Connection, sock: socket.socket) -> None:
    match fault:
        case "garbage":
            sock.sendall(b"\0\0\0\1\xc1")
        case "error":
            connection.send(Failed("the engine failed: KeyError: '/some/path'"))
            sys.exit(1)
        case "exit":
            print("/some/path is gone", flush=True)
            sys.exit(3)
        case _:
            FAULTS[fault]()


if __name__ == "__main__":
    main()

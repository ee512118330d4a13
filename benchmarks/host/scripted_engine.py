"""An engine process without vLLM, which draws a word for each request in every step: what is left is the front end.

`python -m benchmarks.host.scripted_engine --socket-fd N`, in the place of `python -m engine`. A step takes as long as
TWOGEAR_HOST_STEP_MS says.
"""

import argparse
import os
import socket
import time

from engine.messages import PROTOCOL_VERSION, Abort, Delta, Generate, Ready, Shutdown, Step, ToEngine, Unreadable
from engine.transport import Connection

STEP_MS = "TWOGEAR_HOST_STEP_MS"
FIRST, WORDS = 5000, 90_000
"""Of the large checkpoint's vocabulary: ids of whole words."""


class ScriptedEngine:
    """Serves one connection until it is told to stop."""

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._left: dict[str, int] = {}  # request id → tokens that it may still draw
        self._fresh: set[str] = set()
        self._drawn = 0

    def run(self) -> None:
        """Returns after Shutdown."""
        self._connection.send(Ready(PROTOCOL_VERSION, "scripted", "Scripted", 32_768, 1024, (2,), ()))
        end = time.monotonic()
        while True:
            for message in self._connection.receive(0 if self._left else None):
                if isinstance(message, Shutdown):
                    return
                self._take(message)
            if self._left:
                end = max(end, time.monotonic()) + self._seconds
                time.sleep(max(0.0, end - time.monotonic()))
                self._connection.send(Step([self._delta(name) for name in list(self._left)]))

    def _take(self, message: ToEngine | Unreadable) -> None:
        match message:
            case Generate(name, _, sampling):
                self._left[name] = sampling.max_tokens
                self._fresh.add(name)
            case Abort(name):
                self._left.pop(name, None)
                self._fresh.discard(name)

    def _delta(self, name: str) -> Delta:
        self._drawn += 1
        ids = [FIRST + self._drawn * 7919 % WORDS]
        cached = 0 if name in self._fresh else None
        self._fresh.discard(name)
        self._left[name] -= 1
        if self._left[name]:
            return Delta(name, ids, cached)
        del self._left[name]
        return Delta(name, ids, cached, finish="length")


def main() -> None:
    """Serves whoever started it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host.scripted_engine")
    parser.add_argument("--socket-fd", type=int, required=True)
    args, _ = parser.parse_known_args()
    connection = Connection(socket.socket(fileno=args.socket_fd))
    ScriptedEngine(connection, float(os.environ.get(STEP_MS, "0")) / 1000).run()


if __name__ == "__main__":
    main()

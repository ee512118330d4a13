"""One machine of an engine that is spread over several, other than the first: it has workers, and no scheduler.

The scheduler on the first machine tells the workers what to compute. When it ends they would wait for its next word for
ever: so this process ends with it, and is started again by its front end.
"""

import os
import select
import socket
import sys
import threading
import time
from typing import Any

from engine.messages import Ready, Shutdown
from engine.transport import Connection

TRY_SECONDS = 1.0


class WorkerLostError(Exception):
    """A worker of this machine has ended."""


def end_with_first_machine(address: tuple[str, int]) -> None:
    """Ends this process when what listens at `address`, torch's store in the first machine's worker, is gone again.

    Returns at once. Called before there are workers: those that join a machine which ends meanwhile hang.
    """
    threading.Thread(target=_watch, args=(address,), daemon=True).start()


def _watch(address: tuple[str, int]) -> None:
    while True:
        try:
            first = socket.create_connection(address)
            break
        except OSError:  # it has not come so far yet
            time.sleep(TRY_SECONDS)
    hang_up = select.poll()
    hang_up.register(first, select.POLLRDHUP)
    hang_up.poll()
    sys.stderr.write(f"the first machine ({address[0]}:{address[1]}) has ended what it ran\n")
    sys.stderr.flush()
    os._exit(1)


def serve_workers(workers: Any, connection: Connection, ready: Ready) -> None:
    """Sends `ready`, and returns after Shutdown. `workers`: vLLM's Executor, with all of this machine's loaded.

    Raises ConnectionError when the front end is gone, and WorkerLostError.
    """
    lost, tells = socket.socketpair()
    workers.register_failure_callback(tells.close)
    connection.send(ready)
    poll = select.poll()
    poll.register(lost, select.POLLRDHUP)
    poll.register(connection, select.POLLIN)
    while not any(fd == lost.fileno() for fd, _ in poll.poll()):
        if any(isinstance(message, Shutdown) for message in connection.receive(0)):
            return
    raise WorkerLostError("a worker of this machine has ended")

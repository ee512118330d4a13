"""One machine of an engine that is spread over several, other than the first: it has workers, and no scheduler.

The scheduler on the first machine tells the workers what to compute. When it ends they would wait for its next word for
ever: so this machine ends with it, and is started again by its front end.
"""

import select
import socket
from typing import Any

from engine.messages import Ready, Shutdown
from engine.transport import Connection

CONNECT_SECONDS = 30.0


class MachineLostError(Exception):
    """The first machine has ended what it ran, or a worker of this one has ended."""


class Follower:
    """`workers`: vLLM's Executor, with all of this machine's loaded."""

    def __init__(self, workers: Any, connection: Connection) -> None:
        self._connection = connection
        parallel = workers.vllm_config.parallel_config
        self._first = (parallel.master_addr, parallel.master_port)
        self._lost, self._tells = socket.socketpair()
        workers.register_failure_callback(self._tells.close)

    def run(self, ready: Ready) -> None:
        """Sends `ready`, and returns after Shutdown. Raises ConnectionError when the front end is gone, and
        MachineLostError.
        """
        with socket.create_connection(self._first, CONNECT_SECONDS) as first:  # that of torch's store: rank 0 has it
            self._connection.send(ready)
            poll = select.poll()
            for each in (first, self._lost):
                poll.register(each, select.POLLRDHUP)
            poll.register(self._connection, select.POLLIN)
            while not (ended := {fd for fd, _ in poll.poll()} - {self._connection.fileno()}):
                if any(isinstance(message, Shutdown) for message in self._connection.receive(0)):
                    return
        address = ":".join(map(str, self._first))
        is_here = self._lost.fileno() in ended
        raise MachineLostError(
            "a worker of this machine ended" if is_here else f"the first machine, {address}, is gone"
        )

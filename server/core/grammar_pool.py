"""Has grammars written and checked by processes of their own, which a grammar can kill without harm to anybody else.

A few of them (`grammar_worker`): one that a server starts with itself, others when they are needed. They are replaced
when they are lost. What they said of a job is remembered for a while, so that a schema that comes again costs nothing.
Belongs to no event loop.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from hashlib import blake2b
from queue import Empty, SimpleQueue

from server.core import grammar_jobs as jobs
from server.core.grammar_jobs import Died, Job, Refused, Reply, Written
from server.errors import BadRequestError
from server.offload import GRAMMARS, SLOW_GRAMMARS, offload, read_long

QUICK_SECONDS = 0.1
"""Of computing, for a first try. What takes longer is begun again with MOST_SECONDS, in a line of its own: so costly
grammars hold up costly ones only.
"""
MOST_SECONDS = 2.0
"""For all that is done with a part of a grammar."""

PATIENCE = 10.0  # seconds for a reply; computing has a limit of its own, so that only a stuck process takes as long
MOST_WAITING = 64  # jobs; each may take seconds
CACHED_BYTES = 16 * 1024**2
CACHE_ENTRY_BYTES = 512  # beside its text


class PoolBusy(Exception):  # noqa: N818 - reads as what it says
    """More grammars wait than the pool takes."""


class GrammarPool:
    """See above. There are as many processes as offload has threads for grammars, each of which waits for one."""

    def __init__(self) -> None:
        self._idle = SimpleQueue[_Worker]()
        self._cache = _Cache()
        self._waiting = 0
        atexit.register(self.close)

    def begin(self) -> None:
        """Starts a process, so that the first grammar need not wait until it has imported what it needs. Returns at
        once.
        """
        self._idle.put(_Worker())

    async def written(self, job: Job, size: int) -> Written:
        """The grammar that `job` asks for, of a body of `size` bytes.

        Raises BadRequestError for what no grammar takes and for what costs too much, and PoolBusy.
        """
        try:
            line, digest = await read_long(lambda: _encoded(job), size)
        except RecursionError:
            raise _refusal(job, "nested too deep") from None
        reply: Reply | None = self._cache.get(digest)
        if reply is None:
            reply = await self._ask_in_turn(line)
            if not isinstance(reply, Died):  # which a busy machine may have caused
                self._cache.put(digest, reply)
        match reply:
            case Written():
                return reply
            case Refused(reason, param):
                raise _refusal(job, reason, param)
            case Died(number):
                what = "time" if number in (signal.SIGPROF, signal.SIGKILL) else "memory"
                raise _refusal(job, f"this grammar takes too much {what} to compile")

    def close(self) -> None:
        """Ends the processes; a later job starts new ones."""
        with contextlib.suppress(Empty):
            while True:
                self._idle.get_nowait().kill()

    async def _ask_in_turn(self, line: bytes) -> Reply:
        if self._waiting >= MOST_WAITING:
            raise PoolBusy("too many grammars are being checked")
        self._waiting += 1
        try:
            reply = await offload(GRAMMARS, lambda: self._ask(line, QUICK_SECONDS))
            if reply == Died(signal.SIGPROF):
                reply = await offload(SLOW_GRAMMARS, lambda: self._ask(line, MOST_SECONDS))
            return reply
        finally:
            self._waiting -= 1

    def _ask(self, line: bytes, seconds: float) -> Reply:
        """Of an idle process, or of a new one; of another new one if that was lost before it took the job. It may
        compute for so many seconds.
        """
        line = b"%g %b" % (seconds, line)
        try:
            worker = self._idle.get_nowait()
        except Empty:
            worker = _Worker()
        reply = worker.ask(line)
        if reply is None:
            worker = _Worker()
            reply = worker.ask(line) or Died(signal.SIGKILL)
        if worker.is_there:
            self._idle.put(worker)
        return reply


class _Worker:
    """One process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server.core.grammar_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Safe path: a folder called `server` where the user stands must not shadow ours.
            env={**os.environ, "PYTHONSAFEPATH": "1"},
            start_new_session=True,  # Ctrl-C is the front end's; and a job can be ended with its process
        )

    @property
    def is_there(self) -> bool:
        """Whether it can take another job."""
        return self._process.returncode is None

    def ask(self, line: bytes) -> Reply | None:
        """None where the process was lost before it replied."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        watch = threading.Timer(PATIENCE, self._signal)
        watch.start()
        started = time.monotonic()
        try:
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except OSError:
            reply = b""
        finally:
            watch.cancel()
            watch.join()
        if reply.endswith(b"\n"):
            return jobs.decode_reply(reply)
        self.kill()
        return Died(signal.SIGKILL) if time.monotonic() - started >= PATIENCE else None

    def kill(self) -> None:
        """Ends the process and the job that it has."""
        self._signal()
        process = self._process
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()

    def _signal(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


class _Cache:
    """The latest replies, by their jobs' digests, up to CACHED_BYTES of text."""

    def __init__(self) -> None:
        self._replies = OrderedDict[bytes, Written | Refused]()
        self._bytes = 0

    def get(self, digest: bytes) -> Written | Refused | None:
        reply = self._replies.get(digest)
        if reply is not None:
            self._replies.move_to_end(digest)
        return reply

    def put(self, digest: bytes, reply: Written | Refused) -> None:
        if digest in self._replies:
            return
        self._replies[digest] = reply
        self._bytes += _bytes_of(reply)
        while self._bytes > CACHED_BYTES:
            _, dropped = self._replies.popitem(last=False)
            self._bytes -= _bytes_of(dropped)


def _bytes_of(reply: Written | Refused) -> int:
    text = reply.text if isinstance(reply, Written) else reply.reason
    return sys.getsizeof(text) + CACHE_ENTRY_BYTES


def _encoded(job: Job) -> tuple[bytes, bytes]:
    """The job as it goes to a process, and its digest."""
    line = jobs.encode(job)
    return line, blake2b(line, digest_size=16).digest()


def _refusal(job: Job, reason: str, param: str = "") -> BadRequestError:
    param = param or job.param
    return BadRequestError(f"{param}: {reason}", param=param)


POOL = GrammarPool()
"""Of this process, for all that it serves."""

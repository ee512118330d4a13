"""A process that writes and checks grammars: each in a child of its own, with limits of memory and computing time.

Jobs come in as lines: the seconds that one may compute, and its JSON. Replies go out as JSON (`grammar_jobs`).
A child costs a millisecond or two, for all that it imports is there already; what a grammar makes it eat or break ends
with it. The process leaves when its input ends, as it does when the front end dies; a child that computes then leaves
within its limit.
"""

import gc
import os
import resource
import signal
import sys
from typing import Any

import msgspec

from server.core import grammar_jobs as jobs
from server.core import grammars
from server.core.call_rules import CallRules
from server.core.grammar_jobs import CallsJob, Died, Job, Refused, RuleJob


def main() -> None:
    """Serves until its input ends."""
    gc.freeze()  # what is there now is shared with the children
    for line in sys.stdin.buffer:
        seconds, _, job = line.partition(b" ")
        child = os.fork()
        if child == 0:
            _reply(job, float(seconds))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            _send(jobs.encode(Died(os.WTERMSIG(status))))


def _reply(line: bytes, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (grammars.MOST_MEMORY, grammars.MOST_MEMORY))
    signal.setitimer(signal.ITIMER_PROF, seconds)  # computing time; the signal ends the process
    try:
        reply = jobs.encode(jobs.Written(_written(jobs.decode_job(line))))
    except RecursionError:
        reply = jobs.encode(Refused("nested too deep"))
    except MemoryError:
        os._exit(1)
    except _OfToolError as error:
        reply = jobs.encode(Refused(*error.args))
    except ValueError as error:
        reply = jobs.encode(Refused(_line(error)))
    signal.setitimer(signal.ITIMER_PROF, 0)
    _send(reply)


def _written(job: Job) -> str:
    """Raises ValueError."""
    if isinstance(job, CallsJob):
        return _calls(job)
    text = _rule(job)
    grammars.check(text if job.kind == "grammar" else f"start: answer\nanswer: {text}")
    return text


def _rule(job: RuleJob) -> str:
    match job.kind:
        case "json":
            return grammars.of_schema(grammars.schema_of(job.value))
        case "regex":
            return grammars.of_regex(job.value)
        case "choice":
            return grammars.of_choices(job.value)
        case "grammar":
            return grammars.of_lark(job.value)


class _OfToolError(Exception):
    """What is wrong with one of several tools, and the field that it came in."""


def _calls(job: CallsJob) -> str:
    try:
        _check_calls(job)
    except ValueError as error:
        for tool, param in zip(job.tools, job.params, strict=True):
            _check_tool(job, tool, param)
        raise ValueError(f"all of them together: {_line(error)}") from error
    return _rules(job, job.tokens)


def _check_tool(job: CallsJob, tool: tuple[str, Any], param: str) -> None:
    """Raises _OfToolError where a tool alone is at fault."""
    try:
        _check_calls(msgspec.structs.replace(job, tools=[tool]))
    except ValueError as error:
        raise _OfToolError(_line(error), param) from error


def _check_calls(job: CallsJob) -> None:
    ids = {spelling: index for index, spelling in enumerate(job.tokens, start=1)}
    grammars.check(f"start: calls\n{_rules(job, ids)}")


def _rules(job: CallsJob, tokens: dict[str, int]) -> str:
    rules = CallRules(job.form, job.tools, tokens, grammars.of_schema, job.texts)
    return rules.text(several=job.several, is_free=job.is_free)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _send(reply: bytes) -> None:
    sys.stdout.buffer.write(reply + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

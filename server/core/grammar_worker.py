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
from server.core.grammar_jobs import CallsJob, Died, Job, Refused, RuleJob, Written, unforced
from server.core.schema_limits import MOST_FORCED, most_forced


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
        reply = jobs.encode(_written(jobs.decode_job(line)))
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


def _written(job: Job) -> Written:
    """Raises ValueError."""
    if isinstance(job, CallsJob):
        return _calls(job)
    rule = _rule(job)
    grammar = rule.text if job.kind == "grammar" else f"start: answer\nanswer: {rule.text}"
    grammars.check(unforced(grammar) if rule.is_long else grammar)
    return rule


def _rule(job: RuleJob) -> Written:
    match job.kind:
        case "json":
            schema = grammars.schema_of(job.value)
            return Written(grammars.of_schema(schema), most_forced(schema) > MOST_FORCED)
        case "regex":
            return Written(grammars.of_regex(job.value), is_long=True)
        case "choice":
            return Written(grammars.of_choices(job.value), max(map(len, job.value), default=0) > MOST_FORCED)
        case "grammar":
            return Written(grammars.of_lark(job.value), is_long=True)


class _OfToolError(Exception):
    """What is wrong with one of several tools, and the field that it came in."""


def _calls(job: CallsJob) -> Written:
    try:
        _check_calls(job)
    except ValueError as error:
        for tool, param in zip(job.tools, job.params, strict=True):
            _check_tool(job, tool, param)
        raise ValueError(f"all of them together: {_line(error)}") from error
    return Written(_rules(job, job.tokens), _are_long(job))


def _check_tool(job: CallsJob, tool: tuple[str, Any], param: str) -> None:
    """Raises _OfToolError where a tool alone is at fault."""
    try:
        _check_calls(msgspec.structs.replace(job, tools=[tool]))
    except ValueError as error:
        raise _OfToolError(_line(error), param) from error


def _check_calls(job: CallsJob) -> None:
    ids = {spelling: index for index, spelling in enumerate(job.tokens, start=1)}
    grammar = f"start: calls\n{_rules(job, ids)}"
    grammars.check(unforced(grammar) if _are_long(job) else grammar)


def _are_long(job: CallsJob) -> bool:
    return any(most_forced(schema) > MOST_FORCED for _, schema in job.tools)


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

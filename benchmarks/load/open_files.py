"""How many connections a load may have open."""

import resource

OTHER_FILES = 500
"""Beside a load's connections."""


def raise_open_files(number: int) -> None:
    """Lets this process have so many files open. Raises SystemExit where the machine does not allow that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        raise SystemExit(f"this load takes {number} open files, and the machine allows {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))

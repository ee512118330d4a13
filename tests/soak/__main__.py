"""`make soak`: an hour of load and faults. Prints what was seen; status 1 where something did not hold."""

import argparse
import sys

from tests.soak.run import Size, soak

ROUND_SECONDS = 120.0


def main() -> int:
    """Runs the soak that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default %(default)g)")
    parser.add_argument("--clients", type=int, default=24, help="how many ask at once (default %(default)d)")
    parser.add_argument("--connections", type=int, default=1000, help="how many are held open (default %(default)d)")
    parser.add_argument("--seed", type=int, default=0, help="of what is asked, and when clients leave")
    arguments = parser.parse_args()
    rounds = max(3, round(arguments.minutes * 60 / (1.5 * ROUND_SECONDS)))
    seconds = arguments.minutes * 60 / rounds / 1.5
    report = soak(Size(rounds, seconds, arguments.clients, arguments.connections), arguments.seed)
    print(report.text())
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())

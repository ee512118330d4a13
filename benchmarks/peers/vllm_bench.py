"""`vllm bench serve` for vLLM's CPU build: the same arguments, the result on stdout.

The `vllm` command does not work there: it asks for the metadata of a package `vllm`, and the build has another name.
"""

import json
import os
import sys
from typing import Any, cast

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

_WANTED = ("completed", "duration", "output_throughput", "median_ttft_ms", "median_tpot_ms", "total_output_tokens")


def run() -> None:
    """Applies the load and writes the figures that our client measures too."""
    parser = cast("Any", FlexibleArgumentParser)(description="vllm bench serve")
    cast("Any", add_cli_args)(parser)
    output = os.dup(1)
    os.dup2(2, 1)  # its tables are no result
    measured = main(parser.parse_args(sys.argv[1:]))
    with os.fdopen(output, "w") as stdout:
        json.dump({name: measured[name] for name in _WANTED}, stdout)


if __name__ == "__main__":
    run()

"""Our engine's process without its warm-up, as `python -m benchmarks.host.paced_engine …` in the place of `-m engine`.

The warm-up asks for log-probabilities and grammars, which `paced.py` has no model to give.
"""

import sys

from engine import __main__ as process
from engine import loading

if __name__ == "__main__":
    loading.warm = lambda *_: None
    sys.exit(process.main())

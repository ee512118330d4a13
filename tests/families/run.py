"""A family's server, with its checkpoint; where the results are."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.families.checkpoints import FAMILIES
from tests.families.checks import BLOCK, Asking
from tests.real_server import RealServer

RESULTS = Path(__file__).parent / "results.json"
ANSWER_SECONDS = 200


@contextmanager
def asked(name: str, folder: Path) -> Iterator[Asking]:
    """A real server to be asked; the checkpoint is made in the folder."""
    FAMILIES[name].make(folder)
    options = ("--dtype", "bfloat16", "--max-model-len", "2048", "--enforce-eager", "--block-size", str(BLOCK))
    with (
        RealServer(str(folder), "--served-model-name", "m", "--", *options) as server,
        httpx.Client(base_url=server.url, timeout=ANSWER_SECONDS) as http,
    ):
        yield Asking(name, http, server.output)

"""A family's server, with its checkpoint; where the results are."""

from pathlib import Path

from tests.families.checkpoints import FAMILIES
from tests.families.checks import BLOCK
from tests.real_server import RealServer

RESULTS = Path(__file__).parent / "results.json"


def served(name: str, folder: Path) -> RealServer:
    """To be entered; the checkpoint is made in the folder."""
    FAMILIES[name].make(folder)
    options = ("--dtype", "bfloat16", "--max-model-len", "2048", "--enforce-eager", "--block-size", str(BLOCK))
    return RealServer(str(folder), "--served-model-name", "m", "--", *options)

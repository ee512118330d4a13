"""Where Python keeps what it compiled of its modules, when it does not keep it beside their source.

An engine process imports six thousand modules, and compiling their source is half of its start. Python does so at
every start where it is told to write no bytecode (PYTHONDONTWRITEBYTECODE, as many container images are), or where
the packages are another user's.
"""

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

VARIABLE = "PYTHONPYCACHEPREFIX"
"""Python's own name for a folder that holds the bytecode of all modules."""
_REFUSAL = "PYTHONDONTWRITEBYTECODE"
_SAMPLE = Path("v1", "engine", "llm_engine.py")
"""A module of vLLM that has been compiled if all have."""


def bytecode_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where bytecode has to go to be found at the next start.

    None where it is or will be beside the source, and where the user has named a place.
    """
    if VARIABLE in environment:
        return None
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent / _SAMPLE
    if _cached(source).exists() or (not environment.get(_REFUSAL) and os.access(source.parent, os.W_OK)):
        return None
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twogear" / "bytecode"


def keep_bytecode(folder: Path) -> None:
    """Has this process read and write bytecode in `folder` from here on."""
    sys.pycache_prefix = str(folder)
    sys.dont_write_bytecode = False


def _cached(source: Path) -> Path:
    """The bytecode beside a source, whatever prefix holds now."""
    return source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"

"""`python -m tests.scripted_process serve …` is `twogear serve …` with an engine that plays a script, slowly."""

import asyncio
import sys
from pathlib import Path
from unittest.mock import patch

from chat_templates.format import ChatFormat
from server import cli
from server.settings import EMBEDDED_MODEL
from tests.fake_engine import FakeEngine
from tests.server.conftest import always


async def _step() -> None:
    await asyncio.sleep(0.02)


def engine(*_arguments: object, **_options: object) -> FakeEngine:
    """Writes 200 words to whatever it is asked, or as many as it may."""
    fmt = ChatFormat.from_folder(Path(EMBEDDED_MODEL))
    ids = [*fmt.encode_text("on and on " * 66), fmt.end_of_turn_id]
    return FakeEngine(always(ids), (fmt.end_of_turn_id,), step=_step)


if __name__ == "__main__":
    import server.replicas

    with patch.object(server.replicas, "ProcessEngineClient", engine):
        sys.exit(cli.main(sys.argv[1:]))

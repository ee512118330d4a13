"""A front end over a scripted engine, as a process with one child: `python -m tests.benchmarks.load.scripted PORT`.

It thinks four tokens, closes its thinking, and answers until the limit. The child stands for an engine process.
"""

import subprocess
import sys
from collections.abc import Iterator
from itertools import repeat

import uvicorn

from benchmarks.load.workload import MODEL_NAME
from chat_templates.format import ChatFormat
from server.app import create_app
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.fake_engine import FakeEngine

FMT = ChatFormat.from_folder(EMBEDDED_MODEL)
(WORD,) = FMT.encode_text("7")


def thinking(prompt_ids: list[int]) -> Iterator[int]:
    closed = FMT.think_end_id in prompt_ids
    if not closed:
        yield from [*repeat(WORD, 4), FMT.think_end_id]
    yield from repeat(WORD)


def main() -> None:
    engine = FakeEngine(thinking, (FMT.end_of_turn_id,), max_context=40_000)
    app = create_app(
        engine, Settings(served_model_name=MODEL_NAME), load_profile(PROFILE_FOLDER / "twogear_tiny.toml"), FMT
    )
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
        finally:
            child.kill()


if __name__ == "__main__":
    main()

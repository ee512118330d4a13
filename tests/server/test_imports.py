"""The front end starts in seconds because it imports none of the heavy libraries; they belong to the engine process."""

import subprocess
import sys

HEAVY = ("torch", "vllm", "transformers", "numpy")


def test_the_front_end_imports_nothing_heavy() -> None:
    modules = "server.app, server.launch, server.cli, server.commands.serve, server.commands.chat.command"
    code = f"import sys, {modules}; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

"""What a person sees while the server starts: the chosen engine defaults, progress, then one line to paste."""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from engine.defaults import Choice, Nodes
from server.engine_client import EngineStatus

LEAST_PROGRESS = 0.3
"""Between two lines where there is no bar."""


class StartDisplay:
    """A progress bar on a terminal, elsewhere a line for each third of the way; the `choices` of defaults before it."""

    def __init__(self, console: Console, choices: Sequence[Choice]) -> None:
        self._console = console
        self._stage = ""
        self._told = -1.0
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console,
            transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task("starting", total=1.0)
        self._print_choices(choices)
        self._progress.start()

    def show(self, status: EngineStatus) -> None:
        """Shows how far the start is."""
        stage = status.detail if status.state == "loading" else f"{status.state}: {status.reason or status.detail}"
        self._progress.update(self._task, description=stage, completed=status.fraction)
        far = status.fraction >= self._told + LEAST_PROGRESS or status.state != "loading"
        if stage != self._stage and far and not self._console.is_terminal:
            self._told = status.fraction
            self._print(f"{status.fraction:4.0%} {stage}")
        self._stage = stage

    def ready(self, url: str, seconds: float, model: str, mode: str) -> None:
        """The line at the end, with a request in `mode` to try."""
        self.close()
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "What is 38 + 45?"}],
            "reasoning_mode": mode,
        }
        self._print(
            f"Ready after {seconds:.0f} s at {url} - try: curl {url}/v1/chat/completions -d '{json.dumps(body)}'"
        )

    def follows(self, nodes: Nodes, seconds: float) -> None:
        """The line at the end, where requests come to another machine."""
        self.close()
        self._print(
            f"Ready after {seconds:.0f} s as machine {nodes.rank} of 0 to {nodes.number - 1}; ask the first one."
        )

    def warn(self, text: str) -> None:
        """A line about what the user may not have meant."""
        self._print(text, style="bold yellow")

    def note(self, lines: Sequence[str]) -> None:
        """What was found out, a line each."""
        for line in lines:
            self._print(line, style="dim")

    def close(self) -> None:
        """Takes the progress bar away."""
        self._progress.stop()

    def _print_choices(self, choices: Sequence[Choice]) -> None:
        for choice in choices:
            self._print(f"{choice.name} {choice.value}: {choice.reason}", style="dim")

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)

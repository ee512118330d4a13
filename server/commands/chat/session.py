"""The conversation itself: reads messages, has them answered, survives a server that is lost meanwhile."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from server.commands.chat.commands import CommandError, run_command
from server.commands.chat.conversation import Conversation, Mode, Model, Run, Settings
from server.commands.chat.display import Display, as_note
from server.commands.chat.generation import Follower
from server.commands.chat.line_editor import Reader
from server.commands.chat.remote import LATER_SECONDS, Remote


class Session:
    """A person, a server and what was said; `draft` is typed already when the person is asked next.

    `saved_to`: the file of the last `/save`. `left`: whether the person wants to leave. `is_person`: whether somebody
    sits there who sees that a server is waited for.
    """

    saved_to: Path | None

    def __init__(
        self, remote: Remote, display: Display, models: Sequence[Model], mode: str, *, is_person: bool
    ) -> None:
        self.display = display
        self.models = models
        self.conversation = Conversation(settings=Settings(model=models[0].name, mode=mode))
        self.saved_to = None
        self.left = False
        self.draft = ""
        self._remote = remote
        self._is_person = is_person

    @property
    def model(self) -> Model:
        """The model that is asked."""
        chosen = self.conversation.settings.model
        return next(model for model in self.models if model.name == chosen)

    @property
    def mode(self) -> Mode:
        """The mode that is asked: the chosen one, or the model's default where it has no such mode."""
        mode = self.model.mode(self.conversation.settings.mode) or self.model.mode(self.model.default_mode)
        return mode or self.model.modes[0]

    @property
    def prompt(self) -> str:
        """What stands before the cursor."""
        budget = self.conversation.settings.budget
        return f"{self.mode.name} {budget}> " if budget and self.mode.thinks else f"{self.mode.name}> "

    def new(self) -> None:
        """Begins another conversation with the same settings."""
        self.conversation = Conversation(settings=self.conversation.settings)
        self.saved_to = None

    async def talk(self, reader: Reader) -> None:
        """Reads messages and answers them until the input ends."""
        while not self.left:
            try:
                line = (await reader.read(self.prompt, self.draft)).strip()
            except (EOFError, KeyboardInterrupt):
                return
            self.draft = ""
            if line.startswith("/") and not line.startswith("//"):
                await self._command(line)
            elif line:
                await self.ask(line[1:] if line.startswith("//") else line, [self.mode])

    async def ask(self, text: str, modes: Sequence[Mode]) -> None:
        """Asks in each of the modes, and shows the answers. What is not answered at all becomes the draft."""
        runs = [self.conversation.new_run(text, mode) for mode in modes]
        failed = await self._generate(runs)
        while await self._come_back(failed):
            for follower in failed:
                follower.run.begin_anew()
            failed = await self._generate([follower.run for follower in failed])
        answered = [run for run in runs if run.answer and run.progress.phase != "failed"]
        if answered:
            chosen = next((run for run in answered if run.mode == self.mode.name), answered[0])
            self.conversation.add(text, runs, runs.index(chosen))
        elif failed:
            self.draft = text

    async def _command(self, line: str) -> None:
        try:
            await run_command(self, line)
        except CommandError as error:
            self.display.problem(str(error))

    async def _generate(self, runs: Sequence[Run]) -> list[Follower]:
        """Shows the answers as they come; those that failed. Ctrl-C ends the thinking first, the answers second."""
        view = self.display.view(runs)
        followers = [Follower(self._remote, run, view) for run in runs]
        tasks = [asyncio.create_task(follower.follow()) for follower in followers]

        def interrupt() -> None:
            thinking = [follower for follower in followers if follower.may_close_thinking]
            for follower in thinking:
                follower.close_thinking()
            if not thinking:
                for task in tasks:
                    task.cancel()

        with _on_interrupt(interrupt):
            await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()
        view.close()
        for run in runs:
            if run.progress.error is not None:
                self.display.problem(run.progress.error if len(runs) == 1 else f"{run.mode}: {run.progress.error}")
        return [follower for follower in followers if follower.error is not None]

    async def _come_back(self, failed: Sequence[Follower]) -> bool:
        """Waits until the same requests may be answered, where that may be and nothing of them came.

        False: there is nothing to wait for, or Ctrl-C ended the waiting.
        """
        pauses = [follower.error.later for follower in failed if follower.error is not None and follower.run.is_empty]
        if not failed or None in pauses or len(pauses) < len(failed) or not self._is_person:
            return False
        waiting = asyncio.create_task(self._wait(max(pause or 0.0 for pause in pauses)))
        with _on_interrupt(waiting.cancel):
            await asyncio.wait([waiting])
        if not waiting.cancelled():
            self.display.note("The server takes requests again: asking again.")
        return not waiting.cancelled()

    async def _wait(self, pause: float) -> None:
        """At least for `pause` seconds, and until the server takes requests."""
        with self.display.waiting("Waits for the server; Ctrl-C ends that.") as status:
            await asyncio.sleep(pause)
            while (trouble := await self._remote.trouble()) is not None:
                status.update(as_note(f"Waits for the server; Ctrl-C ends that. {trouble}"))
                await asyncio.sleep(LATER_SECONDS)


@contextmanager
def _on_interrupt(call: Callable[[], object]) -> Iterator[None]:
    """Calls `call` at Ctrl-C."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, call)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)

"""Follows one answer from its request to its end, whatever that is."""

import asyncio
import time

from server.commands.chat.conversation import Run
from server.commands.chat.display import View
from server.commands.chat.remote import Choice, Chunk, Remote, RemoteError

STALL_SECONDS = 15.0
"""After so long without anything, a person is told."""


class Follower:
    """Sends a run, and moves its texts and progress on. `error`: why it failed, if it did."""

    def __init__(self, remote: Remote, run: Run, view: View) -> None:
        self.run = run
        self.error: RemoteError | None = None
        self._remote = remote
        self._view = view
        self._started = self._last_came = time.monotonic()
        self._told = False
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def may_close_thinking(self) -> bool:
        """Whether the run thinks, or will, and was not told yet to answer."""
        progress = self.run.progress
        begun = progress.completion_id is not None and progress.phase in ("waiting", "thinking")
        return self.run.thinks and begun and not self._told

    def close_thinking(self) -> None:
        """Has the answer follow; where that fails, `error` of the run's progress says why and the thinking goes on."""
        self._told = True
        self._closing.add(asyncio.create_task(self._close()))

    async def follow(self) -> None:
        """To the end of the run, or until it is cancelled."""
        progress = self.run.progress
        watch = asyncio.create_task(self._watch())
        try:
            async for chunks in self._remote.stream(self.run.body):
                self._take(chunks)
            progress.phase = "done"
        except RemoteError as error:
            self.error = error
            progress.phase, progress.error = "failed", str(error)
        except asyncio.CancelledError:
            progress.phase = "stopped"
        finally:
            progress.elapsed, progress.stalled = self._now(), False
            for task in (watch, *self._closing):
                task.cancel()

    async def _watch(self) -> None:
        """Tells of each time that nothing comes for long."""
        while True:
            await asyncio.sleep(self._last_came + STALL_SECONDS - time.monotonic())
            quiet = time.monotonic() - self._last_came >= STALL_SECONDS
            if quiet and not self.run.progress.stalled:
                self.run.progress.stalled = True
                self._view.stalled(self.run)
            if quiet:
                await asyncio.sleep(STALL_SECONDS)

    async def _close(self) -> None:
        progress = self.run.progress
        assert progress.completion_id is not None
        try:
            await self._remote.end_thinking(progress.completion_id)
            progress.reasoning_finish = "stopped"  # the server's own word comes with the end of the answer
        except RemoteError as error:
            if progress.phase in ("waiting", "thinking"):
                progress.error = f"The thinking goes on: {error}"

    def _now(self) -> float:
        return (time.monotonic() - self._started) * 1000

    def _take(self, chunks: list[Chunk]) -> None:
        """What came at one time."""
        progress = self.run.progress
        self._last_came, progress.stalled = time.monotonic(), False
        progress.elapsed = self._now()
        before = progress.completion_tokens
        for chunk in chunks:
            self._take_one(chunk)
        if progress.first_token == progress.elapsed:
            progress.first_tokens = progress.completion_tokens
        if progress.completion_tokens > before:
            progress.last_token = progress.elapsed

    def _take_one(self, chunk: Chunk) -> None:
        progress = self.run.progress
        progress.completion_id = chunk.id or progress.completion_id
        if (usage := chunk.usage) is not None:
            prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
            progress.prompt_tokens = usage.prompt_tokens
            progress.completion_tokens = usage.completion_tokens
            progress.cached_tokens = (prompt and prompt.cached_tokens) or 0
            progress.reasoning_tokens = (completion and completion.reasoning_tokens) or 0
        for choice in chunk.choices:
            self._take_choice(choice)

    def _take_choice(self, choice: Choice) -> None:
        progress = self.run.progress
        thought = choice.delta.reasoning or choice.delta.reasoning_content or ""
        said = choice.delta.content or ""
        progress.finish = choice.finish_reason or progress.finish
        progress.reasoning_finish = choice.reasoning_finish_reason or progress.reasoning_finish
        if not thought and not said:
            return
        progress.phase = "answering" if said else "thinking"
        if progress.first_token is None:
            progress.first_token = progress.elapsed
        if said and progress.first_answer is None:
            progress.first_answer = progress.elapsed
        self.run.thinking += thought
        self.run.answer += said
        self._view.show(self.run, thought, said)

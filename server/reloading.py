"""Profile and keys from their files: at the start, and anew when SIGHUP comes."""

import asyncio
import logging
import os
import signal
from pathlib import Path

from server.access.keys import KeyFile, check_modes, keys_of
from server.cli_errors import UsageError
from server.core.serving import Serving
from server.draining import DrainingServer
from server.model_files import choose_profile, tokenizer_folder
from server.modes.checkpoint_sampling import with_sampling
from server.modes.profile import Profile, load_profile, styles_of
from server.settings import Settings

logger = logging.getLogger("twogear.server")


class Reloading:
    """SIGHUP: profile and keys anew, as they are in their files now. What cannot be used leaves all as it is.

    The files are read in a thread, so that streams go on meanwhile. Where the signal says that the terminal is gone,
    the server ends as it would without this.
    """

    def __init__(self, server: DrainingServer) -> None:
        self._server = server
        # Under nohup the signal is ignored, and a terminal that goes away is meant to change nothing.
        self._has_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _has_terminal()
        self._task: asyncio.Task[None] | None = None
        self._again = False

    @property
    def is_busy(self) -> bool:
        """Whether files are being read."""
        return self._task is not None

    def begin(self) -> None:
        """Called for each signal; what comes while files are read counts for another time."""
        if self._has_terminal and not _has_terminal():
            self._server.handle_exit(signal.SIGTERM, None)
        elif self._task is not None:
            self._again = True
        else:
            self._task = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        serving = self._server.serving
        try:
            await reload(serving)
        except UsageError as error:
            logger.error("not loaded anew, all stays as it was: %s", error)  # noqa: TRY400 - a line, no traceback
        else:
            logger.warning("loaded anew: the modes are %s; %s", ", ".join(serving.modes.by_name), _told_of(serving))
        finally:
            self._task = None
        if self._again:
            self._again = False
            self.begin()


async def reload(serving: Serving) -> None:
    """Profile and keys as they are in their files now; raises UsageError, and changes nothing, where that fails."""
    settings = serving.settings
    folder = await asyncio.to_thread(tokenizer_folder, settings.model)
    profile, keys = await asyncio.to_thread(load_profile_and_keys, folder, settings)
    styles = styles_of(profile.plain)
    try:
        fmt = await asyncio.to_thread(serving.fmt.restyled, folder, settings.chat_template, styles)
        serving.adopt(profile, fmt)
    except (OSError, ValueError) as error:
        raise UsageError(f"the profile cannot be used: {error}") from error
    serving.access.replace(keys)


def load_profile_and_keys(folder: Path, settings: Settings) -> tuple[Profile, KeyFile | None]:
    """As they are in their files now; raises UsageError."""
    profile = load_profile(settings.profile or choose_profile(folder, settings))
    if profile.sampling_of_checkpoint:
        profile = with_sampling(profile, folder)
    keys = keys_of(settings.api_keys, settings.api_key_hashes)
    if keys is not None:
        check_modes(keys, profile.modes)
    return profile, keys


def _told_of(serving: Serving) -> str:
    return f"the keys {', '.join(serving.access.names)}" if serving.access.has_keys else "no keys are needed"


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True

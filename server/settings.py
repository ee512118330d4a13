"""Every default of the front end, in one frozen object; the command line and its help read them from here.

The engine's own options are not here: they belong to the engine process (`engine`) and go through unchanged.
"""

from dataclasses import dataclass
from pathlib import Path

EMBEDDED_MODEL = Path(__file__).parent.parent / "models" / "twogear-tiny"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the front end serves. Times in seconds, sizes in bytes."""

    model: str = str(EMBEDDED_MODEL)
    """A local folder or a hub id."""
    host: str = "127.0.0.1"
    port: int = 8000
    served_model_name: str | None = None
    """The name that clients send; None: the folder's name, or the hub id."""
    profile: Path | None = None
    """None: the shipped one for the model's family."""
    chat_template: Path | None = None
    """None: the checkpoint's own; ours if it has none."""
    max_body_bytes: int = 4 * 1024 * 1024
    """32 for each token of a context of 131072, more than any prompt that fits into it needs."""
    max_response_bytes: int = 256 * 1024 * 1024
    """What the log-probabilities of one response may take until it is whole."""
    keep_alive: int = 75
    """How long an idle connection stays open: longer than the usual client keeps it."""
    stall_seconds: float = 60.0
    """How long a client may leave its stream unread before its request is ended."""
    retry_after: int = 2
    """What clients are told to wait when the server cannot take a request now."""
    allow_priority: bool = False
    """Whether clients may set the priority of their requests."""
    verbose: bool = False
    """Whether the log of the engine and of every request is shown."""
    request_log: str | None = None
    """A file for one JSON line of each request; `-` is stderr, None is none."""
    log_text: bool = False
    """Whether these lines have what was asked and answered."""
    otlp_traces_endpoint: str | None = None
    """The URL that traces are sent to; None: there are none."""
    drain_seconds: float = 10.0
    """How long running requests may go on after a termination signal."""

    @property
    def model_name(self) -> str:
        """The name under which the model is listed."""
        if self.served_model_name is not None:
            return self.served_model_name
        folder = Path(self.model)
        return folder.resolve().name if folder.is_dir() else self.model

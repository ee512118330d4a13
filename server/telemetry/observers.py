"""Who is told of every request that has ended: the request log and the traces, those that the settings ask for."""

from collections.abc import Sequence
from typing import Protocol

from prometheus_client.registry import Collector

from server.cli_errors import UsageError
from server.settings import Settings
from server.telemetry.record import RequestRecord
from server.telemetry.request_log import RequestLog
from server.telemetry.traces import open_traces


class Observer(Protocol):
    """Writes down requests."""

    @property
    def collectors(self) -> Sequence[Collector]:
        """Its own metrics, for the server's registry."""

    def write(self, record: RequestRecord) -> None:
        """Notes a request that has ended."""

    def close(self) -> None:
        """Called once, at the server's end; may wait."""


def open_observers(settings: Settings) -> list[Observer]:
    """Traces come first, so that the log has their ids; raises UsageError."""
    observers: list[Observer] = []
    if settings.otlp_traces_endpoint is not None:
        observers.append(open_traces(settings.otlp_traces_endpoint, settings.model_name))
    if settings.request_log is not None:
        try:
            observers.append(RequestLog(settings.request_log, settings.model_name))
        except OSError as error:
            raise UsageError(f"--request-log {settings.request_log} cannot be written: {error.strerror}") from error
    return observers

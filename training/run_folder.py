"""What a training run keeps in its folder to go on from: `state.pt`, and the records in `metrics.jsonl`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn


class Stateful(Protocol):
    """What is needed of an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """All that it goes on from."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Goes on from there."""


class RunFolder:
    """The state and records of one run in `path`, whatever stage it is of."""

    def __init__(self, path: Path) -> None:
        self._state = path / "state.pt"
        self.metrics = path / "metrics.jsonl"

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds a record, which has a `step`."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def save(self, model: nn.Module, optimizer: Stateful, position: Mapping[str, Any]) -> None:
        """Writes what a later start resumes from, `position` with a `step`; the old state stays until it is whole."""
        state = {**position, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        partial = self._state.with_suffix(".pt.partial")
        torch.save(state, partial)
        partial.replace(self._state)

    def resume(self, model: nn.Module, optimizer: Stateful) -> dict[str, Any]:
        """The position of the last state, whose weights are taken, or nothing; forgets what was logged after it."""
        position: dict[str, Any] = {}
        if self._state.exists():
            position = torch.load(self._state, map_location="cpu", weights_only=True)
            model.load_state_dict(position.pop("model"))
            optimizer.load_state_dict(position.pop("optimizer"))
        if self.metrics.exists():
            lines = self.metrics.read_text().splitlines(keepends=True)
            past = [line for line in lines if position and json.loads(line)["step"] <= position["step"]]
            self.metrics.write_text("".join(past))
        return position

"""What a training run keeps in its folder: `state.pt`, which is all that it goes on from, and `metrics.jsonl`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from training import ranks as processes
from training.ranks import Ranks


class Stateful(Protocol):
    """What is needed of an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """All that it goes on from."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Goes on from there."""


class RunFolder:
    """The state and records of one run in `path`, whatever kind it is of; the first of its processes writes them."""

    def __init__(self, path: Path, ranks: Ranks | None = None) -> None:
        self._ranks = ranks or Ranks()
        self.state = path / "state.pt"
        self.metrics = path / "metrics.jsonl"

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds a record."""
        if not self._ranks.is_first:
            return
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def save(self, model: nn.Module, optimizer: Stateful, position: Mapping[str, Any]) -> None:
        """Writes what a later start resumes from, the records too; the old state stays until the new one is whole."""
        state = self._ranks.gathered({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        if not self._ranks.is_first:
            return
        logged = self.metrics.read_text() if self.metrics.exists() else ""
        state |= {"position": dict(position), "metrics": logged}
        partial = self.state.with_suffix(".pt.partial")
        torch.save(state, partial)
        partial.replace(self.state)

    def resume(self, model: nn.Module, optimizer: Stateful) -> dict[str, Any]:
        """The position of the last state, whose weights and records are taken, or nothing and no records."""
        if not self.state.exists():
            if self._ranks.is_first:
                self.metrics.unlink(missing_ok=True)
            return {}
        state = torch.load(self.state, map_location="cpu", weights_only=True, mmap=not self._ranks.is_first)
        processes.load(model, state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if self._ranks.is_first:
            self.metrics.write_text(state["metrics"])
        position: dict[str, Any] = state["position"]
        return position

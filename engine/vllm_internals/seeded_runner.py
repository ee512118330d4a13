"""Mends vLLM's CPU model runner where a request with a seed would end the engine.

vLLM 0.32's runner also draws for rows whose prompt is not yet complete and takes the draw back with
`generator.set_offset`, which torch's CPU generators do not have (RuntimeError: CPU Generator does not use offset).
Here such a draw is taken back by restoring the generator's state.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


class SeededRunner:
    """A mixin for the runner: leaves the generators of incomplete prompts as they were before the draw."""

    discard_request_mask: Any
    input_batch: Any

    def _incomplete(self) -> "Iterator[tuple[int, torch.Generator]]":
        rows = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]
        generators = self.input_batch.generators
        return ((row, generators[row]) for row in map(int, rows) if row in generators)

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        before = [(generator, generator.get_state()) for _, generator in self._incomplete()]
        output = super()._sample(*args, **kwargs)  # type: ignore[misc]
        for generator, state in before:
            generator.set_state(state)
        return output

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        held = dict(self._incomplete())
        for row in held:
            del generators[row]
        try:
            return super()._bookkeeping_sync(*args, **kwargs)  # type: ignore[misc]
        finally:
            generators.update(held)

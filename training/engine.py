"""An engine process beside a training, for whatever is drawn or asked from a checkpoint on the way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import torch

from server.cli_errors import UsageError
from server.process_engine_client import ProcessEngineClient


@asynccontextmanager
async def running_engine(model: str) -> AsyncIterator[ProcessEngineClient]:
    """An engine process with the checkpoint in `model`, ready. Raises UsageError where it cannot come up."""
    half = ["--gpu-memory-utilization", "0.5"] if torch.cuda.is_available() else []  # training has the other
    engine = ProcessEngineClient(model, half)
    await engine.start()
    try:
        while engine.status.state != "ready":
            if engine.status.final:
                raise UsageError(f"no engine for the checkpoint: {engine.status.reason}")
            await asyncio.sleep(0.1)
        yield engine
    finally:
        await engine.close()

"""Requests before the first user's: whatever starts, compiles or is learnt with a first request is there at Ready.

They go the way that all go, through a loop of their own over the engine, and leave nothing in it but warmth. What an
engine refuses is left out, as it will be for everybody.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from engine.loop import EngineLoop
from engine.messages import Continuation, Failed, FromEngine, Generate, Sampling, Shutdown, Step, ToEngine, Unreadable
from engine.vllm_internals.attach import Internals

PATIENCE = 2.0
"""Seconds after which a CPU begins nothing more: it compiles nothing, and a large model takes as long for a prompt."""
ROWS = (2, 4, 8, 16, 32, 64, 128)
"""Sampled at once. On GPUs vLLM's kernels for top-p and top-k are others for few rows than for many; with 64 to 255
multiprocessors each that there is has one of these numbers."""
_PROMPT, _LONG_PROMPT = 8, 256
_FEW, _SEVERAL = 2, 12
"""Tokens that are drawn: as few as there can be of a kind, or enough for several steps at once."""

Batch = list[Generate]


def warm_up(engine: Any, internals: Internals, eos_token_ids: tuple[int, ...], *, compiles: bool) -> None:
    """Computes them on vLLM's LLMEngine. `compiles`: on this device kernels are compiled when they are first called.

    Raises what vLLM raises where it computes no request at all.
    """
    batches = [*_kinds(), *(_gpu_batches() if compiles else ())]
    script = _Script(batches, engine.vllm_config.scheduler_config.max_num_seqs, None if compiles else PATIENCE)
    EngineLoop(engine, internals, eos_token_ids, script).run()
    while internals.pages.has_work():  # the workers have yet to hear that the last requests have ended
        engine.step()
    engine.reset_prefix_cache()


class _Script:
    """In the place of the connection: brings a batch when all before it have ended, then Shutdown."""

    def __init__(self, batches: Sequence[Batch], most_at_once: int, patience: float | None) -> None:
        self._batches = iter([batch[:most_at_once] for batch in batches])
        self._open: set[str] = set()
        self._end = None if patience is None else time.monotonic() + patience

    def receive(self, timeout: float | None) -> list[ToEngine | Unreadable]:  # noqa: ARG002 - never waits
        """The next batch once nothing is open."""
        return self._next() if not self._open else []

    def _next(self) -> list[ToEngine | Unreadable]:
        is_late = self._end is not None and time.monotonic() > self._end
        batch = None if is_late else next(self._batches, None)
        if batch is None:
            return [Shutdown()]
        self._open = {request.request_id for request in batch}
        return list(batch)

    def send(self, message: FromEngine) -> None:
        """Notes what has ended. Raises RuntimeError where the engine has."""
        match message:
            case Step(deltas):
                self._open -= {delta.request_id for delta in deltas if delta.finish is not None}
            case Failed(text, request_id):
                if request_id is None:
                    raise RuntimeError(text)
                self._open.discard(request_id)


def _kinds() -> Iterator[Batch]:
    """What modes and clients can ask for, the likeliest first."""
    sampled: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95}
    yield [_request("greedy", max_tokens=_SEVERAL)]
    yield [_request("sampled", max_tokens=_SEVERAL, **sampled)]
    yield [
        _request("both greedy"),
        _request("both sampled", **sampled),
        _request("seed", seed=1, **sampled),
        _request("top-k", temperature=0.6, top_k=20),
        _request("min-p", temperature=0.6, min_p=0.1),
        _request("presence", presence_penalty=0.5, **sampled),
        _request("frequency", frequency_penalty=0.5),
        _request("repetition", repetition_penalty=1.1),
        _request("bias", logit_bias={1: -1.0}),
        _request("allowed", allowed_token_ids=(1, 2)),
        _request("least", min_tokens=1, stop_token_ids=(1,)),
        _request("words", bad_words=((1, 2),)),
    ]
    yield [_request("grammar", grammar='start: "a"')]
    yield [_request(f"log-probabilities {number}", logprobs=number, **sampled) for number in (0, 5)]
    yield [_budget()]
    yield [_request("beside", max_tokens=_SEVERAL), _request("long", length=_LONG_PROMPT)]


def _gpu_batches() -> Iterator[Batch]:
    """Kernels that differ by how many rows are sampled, and by how many log-probabilities are told."""
    limits: tuple[dict[str, Any], ...] = ({"top_p": 0.95}, {"top_p": 0.95, "top_k": 20}, {"top_k": 20})
    for number, limit in enumerate(limits):
        for rows in ROWS:
            yield [_request(f"{number} {rows} {row}", length=3, temperature=0.6, **limit) for row in range(rows)]
    for told in (1, 20):
        yield [_request(f"log-probabilities {told}", logprobs=told)]


def _request(name: str, *, length: int = _PROMPT, **fields: Any) -> Generate:
    sampling = Sampling(**({"temperature": 0.0, "max_tokens": _FEW, "ignore_eos": True} | fields))
    return Generate(f"warm-up {name}", [0] * length, sampling)


def _budget() -> Generate:
    then = Continuation(_FEW, 1, (0, 0), Sampling(temperature=0.0, max_tokens=_FEW, ignore_eos=True))
    return msgspec.structs.replace(_request("budget", max_tokens=_SEVERAL), then=then)

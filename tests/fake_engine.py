"""An engine client in this process that plays token ids by a script instead of running a model.

It keeps the boundary's promises as the real one does: stop tokens, end of turn, token limits, aborts, one delta a step.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from itertools import count, cycle, islice
from typing import Any, Literal

from engine.messages import PROTOCOL_VERSION, Adapter, Delta, Generate, PageGroup, Ready, Stats, TokenLogprob
from server.engine_client import EngineStatus, EngineUnavailable, ReaderBehind, RequestFailed

Script = Callable[[list[int]], Iterator[int]]
"""From prompt ids to the tokens that the model would write after them, the end of the turn among them."""


def script_of(ids: Sequence[int], prompt_length: int) -> Script:
    """Writes `ids` after a prompt of `prompt_length`; a longer prompt, as a second generation has, goes on in them.

    What was said for the model in between counts as written, and once `ids` are used up, the last one is repeated.
    """

    def script(prompt_ids: list[int]) -> Iterator[int]:
        done = len(prompt_ids) - prompt_length
        return (ids[min(done + n, len(ids) - 1)] for n in count())

    return script


class FakeEngine:
    """Plays `script`; `chunks` are the sizes of the deltas, repeated. `seen` are the requests it got.

    `cached_tokens`: what it says it found in its cache. `fail_after`: the engine is lost after so many deltas.
    `refuse`: the reason for which it refuses every request.
    """

    def __init__(
        self,
        script: Script,
        eos_token_ids: tuple[int, ...],
        *,
        chunks: Sequence[int] = (1,),
        max_context: int = 4096,
        max_num_seqs: int = 256,
        fail_after: int | None = None,
        refuse: str | None = None,
        step: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.script = script
        self.chunks = chunks
        self.fail_after = fail_after
        self.refuse = refuse
        self.cached_tokens = 0
        self.seen: list[Generate] = []
        self.under_way: set[str] = set()
        self.aborted: list[str] = []
        self.prioritized: list[tuple[str, int]] = []
        self.adapters: dict[int, Adapter] = {}
        self.refuse_adapters: str | None = None
        self.status = EngineStatus("ready", "", 1.0)
        self.stats: Stats | None = None
        self.restarts: dict[str, int] = {}
        groups = (PageGroup("sliding", 32, 1, 2, 3), PageGroup("global", 32, 4, 5, 6))
        self.ready: Ready | None = Ready(
            PROTOCOL_VERSION, "fake", "Fake", max_context, max_num_seqs, eos_token_ids, groups
        )
        self.step = step

    @property
    def replicas(self) -> "Sequence[FakeEngine]":
        """Itself."""
        return (self,)

    async def start(self) -> None:
        """Nothing to start."""

    async def close(self) -> None:
        """Nothing to end."""

    def prioritize(self, request_id: str, priority: int) -> None:
        """Noted in `prioritized`."""
        self.prioritized.append((request_id, priority))

    async def load_adapter(self, adapter: Adapter) -> None:
        """Noted in `adapters`, unless `refuse_adapters` says why not."""
        if self.refuse_adapters is not None:
            raise RequestFailed(self.refuse_adapters)
        self.adapters[adapter.id] = adapter

    def unload_adapter(self, adapter_id: int) -> None:
        """Gone from `adapters`."""
        self.adapters.pop(adapter_id, None)

    def is_running(self, request_id: str) -> bool:
        """It makes a delta when it is asked for one, so that it is never ahead of its readers."""
        return request_id in self.under_way

    def abort(self, request_id: str) -> None:
        """Its reader gets no more."""
        self.under_way.discard(request_id)

    async def generate(self, request: Generate, kind: str = "") -> AsyncGenerator[Delta, None]:
        """The script's tokens, cut into deltas; a step of the event loop between them."""
        self.seen.append(request)
        if self.refuse is not None:
            raise RequestFailed(self.refuse)
        ended = False
        self.under_way.add(request.request_id)
        try:
            for number, delta in enumerate(self._deltas(request)):
                if number == self.fail_after:
                    raise EngineUnavailable("engine lost")
                await (asyncio.sleep(0) if self.step is None else self.step())
                if request.request_id not in self.under_way:
                    raise ReaderBehind
                ended = delta.finish is not None
                yield delta
        finally:
            self.under_way.discard(request.request_id)
            if not ended:
                self.aborted.append(request.request_id)

    def _deltas(self, request: Generate) -> Iterator[Delta]:
        """Those of the generation, and of what takes its place, which is seen as a request of its own."""
        ids, finish, stop_token_id = self._generation(request)
        sizes = cycle(self.chunks)
        then = request.then
        written = ids if stop_token_id is None else ids[:-1]
        first = ids if then is None else ids[: then.after_tokens + 1]
        if then is not None and len(written) > then.after_tokens and then.unless_token_id not in first:
            yield from self._parts(request, first, sizes, goes_on=True)
            prompt_ids = [*request.prompt_ids, *ids[: then.after_tokens], *then.forced_token_ids]
            following = Generate(
                request.request_id,
                prompt_ids,
                then.sampling,
                request.priority,
                cache_salt=request.cache_salt,
                adapter=request.adapter,
            )
            self.seen.append(following)
            yield from self._deltas(following)
        else:
            yield from self._parts(request, ids, sizes, finish=finish, stop_token_id=stop_token_id)

    def _parts(self, request: Generate, ids: list[int], sizes: Iterator[int], **last: Any) -> Iterator[Delta]:
        """`last` are the fields of the last delta alone."""
        at = 0
        while at < len(ids):
            size = next(sizes)
            part, cached = ids[at : at + size], self.cached_tokens if at == 0 else None
            at += size
            logprobs = self._logprobs(part, request.sampling.logprobs)
            of_prompt = self._prompt_logprobs(request) if cached is not None else None
            fields = last if at >= len(ids) else {}
            yield Delta(request.request_id, part, cached, logprobs=logprobs, prompt_logprobs=of_prompt, **fields)

    def _prompt_logprobs(self, request: Generate) -> list[TokenLogprob | None] | None:
        entries = self._logprobs(request.prompt_ids, request.sampling.prompt_logprobs)
        return None if entries is None else [None, *entries[1:]]

    def _logprobs(self, ids: list[int], top: int | None) -> list[TokenLogprob] | None:
        """Each token is the likeliest, with a probability by its id; those after it in the vocabulary come next."""
        if top is None:
            return None
        return [
            TokenLogprob(-token_id / 1000, [(token_id + n, -token_id / 1000 - n) for n in range(max(top, 1))])
            for token_id in ids
        ]

    def _generation(self, request: Generate) -> tuple[list[int], Literal["stop", "length"], int | None]:
        assert self.ready is not None
        sampling = request.sampling
        stops = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            stops |= set(self.ready.eos_token_ids)
        ids: list[int] = []
        for token_id in islice(self.script(request.prompt_ids), sampling.max_tokens):
            ids.append(token_id)
            if token_id in stops and len(ids) > sampling.min_tokens:
                return ids, "stop", token_id
        return ids, "length", None

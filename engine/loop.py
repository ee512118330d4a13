"""The engine's life once it is loaded: drain the inbox, step, send what the step produced.

Knows vLLM's request interface and the messages; the socket is `transport`'s, vLLM's inside that of `vllm_internals`.
"""

import math
import time
import traceback
from collections import deque
from typing import Literal, cast

import msgspec
from vllm.exceptions import VLLMClientError
from vllm.inputs import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.llm_engine import LLMEngine

from engine.adapter_files import AdapterError
from engine.adapters import Adapters
from engine.blame import Blame
from engine.checkpoint import ModelError, check_model
from engine.conversion import logprobs_of, prompt_logprobs_of, refusal, sampling_params
from engine.messages import (
    Abort,
    Adapter,
    AdapterLoaded,
    Delta,
    Failed,
    Generate,
    LoadAdapter,
    Prioritize,
    Reload,
    Reloaded,
    Shutdown,
    Step,
    ToEngine,
    UnloadAdapter,
    Unreadable,
)
from engine.sampling_limits import check_limits
from engine.stats import StatsSender, StepCounts
from engine.token_budget import TokenBudget
from engine.transport import Channel
from engine.vllm_internals.attach import Internals

_REPORT_INTERVAL = 0.1
_MOST_UNEXPLAINED, _UNEXPLAINED_SECONDS = 3, 60.0
"""An engine whose steps fail more often in so many seconds, and do not when they are tried again, is given up."""
_CANARY = "canary"


class EngineLoop:
    """Serves one connection until it is told to stop.

    After a step that failed, those that ran in it are let run in parts, until the one to blame is found or all have
    gone on; new requests wait meanwhile.
    """

    def __init__(
        self, engine: LLMEngine, internals: Internals, eos_token_ids: tuple[int, ...], connection: Channel
    ) -> None:
        self._engine = engine
        self._pages = internals.pages
        self._adapters = Adapters(engine)
        self._eos_token_ids = eos_token_ids
        self._limits = internals.limits
        self._connection = connection
        self._vocabulary = engine.vllm_config.model_config.get_vocab_size()
        self._fresh: dict[str, bool] = {}  # request id → nothing sent yet
        self._budgets: dict[str, TokenBudget] = {}  # of requests with a second part
        self._own_ids: dict[str, str] = {}  # request id → vLLM's own
        self._names: dict[str, str] = {}  # the other way round
        self._extender = internals.extender
        self._recovery = internals.recovery
        self._stepper = internals.steps
        self._blame = Blame()
        self._searching = False
        self._held: list[Generate] = []  # that came meanwhile
        self._unexplained: deque[float] = deque(maxlen=_MOST_UNEXPLAINED)  # when searches began that found nobody
        self._steps = StepCounts()
        self._computed = 0  # prompt tokens in the step under way
        self._stats = StatsSender(self._pages, connection, self._steps)
        self._reported = -math.inf
        self._progress: object = None  # at the last report

    def run(self) -> None:
        """Returns after Shutdown. Raises ConnectionError when the front end is gone, and what vLLM raises."""
        while True:
            busy = self._pages.has_work()
            for message in self._connection.receive(0 if busy else self._stats.seconds_left()):
                if isinstance(message, Shutdown):
                    return
                self._handle(message)
            if self._pages.has_work():
                self._try_step()
            self._adapters.sweep()
            if self._searching:
                self._go_on_with_search()
            self._stats.send_if_due()

    def _handle(self, message: ToEngine | Unreadable) -> None:
        match message:
            case Unreadable(request_id, reason):
                self._connection.send(Failed(reason, request_id))
            case Generate() if self._searching:
                self._held.append(message)
            case Generate():
                self._add(message)
            case Abort(request_id):
                self._held = [one for one in self._held if one.request_id != request_id]
                if request_id in self._fresh:
                    self._forget(request_id)
                    self._engine.abort_request([request_id])
                    self._stats.changed()
                    self._progress = None  # that there is one fewer is worth a report
                    self._report([])
            case Prioritize(request_id, priority):
                self._prioritize(request_id, priority)
            case Reload(folder):
                self._connection.send(Reloaded(self._reload(folder)))
            case LoadAdapter(adapter):
                self._connection.send(AdapterLoaded(adapter.id, self._load(adapter)))
            case UnloadAdapter(adapter_id):
                self._adapters.unload(adapter_id)

    def _prioritize(self, request_id: str, priority: int) -> None:
        """Also of a request that waits for the end of a search, and of a second part that is yet to be added."""
        self._held = [
            msgspec.structs.replace(one, priority=priority) if one.request_id == request_id else one
            for one in self._held
        ]
        if (budget := self._budgets.get(request_id)) is not None:
            budget.request = msgspec.structs.replace(budget.request, priority=priority)
        if (own_id := self._own_ids.get(request_id)) is not None:
            self._extender.prioritize(own_id, priority)

    def _reload(self, folder: str) -> str | None:
        """Takes other weights; the error in words where the old ones stay. What was cached belongs to the old ones."""
        if self._fresh:
            return "requests are running"
        try:
            check_model(folder)
        except ModelError as error:
            return str(error)
        while self._pages.has_work():  # the workers have yet to hear that the last requests have ended
            self._step()
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self._engine.reset_prefix_cache()
        return None

    def _load(self, adapter: Adapter) -> str | None:
        """The error in words where it cannot be loaded."""
        try:
            self._adapters.load(adapter)
        except AdapterError as error:
            return str(error)
        return None

    def _add(self, request: Generate, arrived: float | None = None) -> None:
        """`arrived`: its place among those that wait with the same priority; by default the last."""
        arrived = time.time() if arrived is None else arrived
        try:
            self._check(request)
            own_id = self._engine.add_request(
                request.request_id,
                tokens_input(request.prompt_ids, cache_salt=request.cache_salt or None),
                sampling_params(request.sampling, self._eos_token_ids, request.held_tokens),
                arrival_time=arrived,
                lora_request=self._lora_request(request),
                priority=request.priority,
            )
        except (ValueError, TypeError, OverflowError, VLLMClientError) as error:
            if request.request_id not in self._fresh:
                self._adapters.end(request.request_id)
            self._connection.send(Failed(refusal(error), request.request_id))
        else:
            self._fresh[request.request_id] = True
            self._own_ids[request.request_id] = own_id
            self._names[own_id] = request.request_id
            if request.then is not None:
                self._budgets[request.request_id] = TokenBudget(request, request.then, own_id, arrived)

    def _lora_request(self, request: Generate) -> LoRARequest | None:
        """Raises ValueError where its adapter cannot be loaded any more."""
        if request.adapter is None:
            return None
        try:
            return self._adapters.begin(request.request_id, request.adapter)
        except AdapterError as error:
            traceback.print_exception(error)  # its words name folders, which are not for clients
            raise ValueError(
                f"the adapter {request.adapter.name!r} cannot be loaded; the server's log says why"
            ) from None

    def _check(self, request: Generate) -> None:
        """Raises ValueError for what vLLM leaves to its tokenizer, or would only notice inside a batch."""
        if request.request_id in self._fresh:
            raise ValueError(f"request id {request.request_id} is already running")
        ids = request.prompt_ids if request.then is None else [*request.prompt_ids, *request.then.forced_token_ids]
        if ids and not (min(ids) >= 0 and max(ids) < self._vocabulary):
            raise ValueError(f"the prompt holds a token id outside the vocabulary of {self._vocabulary}")
        bias = request.sampling.logit_bias or {}
        if not all(map(math.isfinite, bias.values())):
            raise ValueError("logit_bias must hold finite numbers")
        check_limits(request, self._limits, self._eos_token_ids)

    def _try_step(self) -> None:
        try:
            self._step()
        except ConnectionError:
            raise
        except Exception as error:
            if not self._recovery.can_recover(error):
                raise
            traceback.print_exc()
            self._search(error)

    def _search(self, error: Exception) -> None:
        """Goes on after a step that failed, without the request that is to blame, or with a part of those that may be.

        Raises the error where it comes again and again and none is to blame, and what vLLM raises where the engine does
        not compute any other request either.
        """
        now = time.monotonic()
        if not self._searching:
            self._unexplained.append(now)
        if len(self._unexplained) == _MOST_UNEXPLAINED and now - self._unexplained[0] < _UNEXPLAINED_SECONDS:
            raise error
        self._searching = True
        suspects = [self._names[own_id] for own_id in self._recovery.recover(error) if own_id in self._names]
        culprit = self._blame.failed(suspects)
        if culprit is not None:
            self._unexplained.clear()
            self._forget(culprit)
            self._engine.abort_request([culprit])
            self._check_without_requests()
            self._connection.send(Failed("".join(traceback.format_exception(error)), culprit, is_broken=True))

    def _check_without_requests(self) -> None:
        """Lets the engine compute a request of ours, while all others are parked. Raises what vLLM raises."""
        sampling = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True, detokenize=False)
        self._engine.add_request(_CANARY, tokens_input([0] * 8), sampling)
        while not any(output.request_id == _CANARY and output.finished for output in self._engine.step()):
            pass

    def _go_on_with_search(self) -> None:
        """Puts the next part on trial; after the last one, all that waited for the search goes on."""
        group = self._blame.next_group()
        if group:
            self._recovery.release([self._own_ids[request_id] for request_id in group])
        elif not self._blame.active:
            self._searching = False
            self._recovery.release(self._recovery.parked())
            held, self._held = self._held, []
            for request in held:
                self._add(request)
            self._stats.changed()

    def _step(self) -> None:
        deltas: list[Delta] = []
        self._computed = 0
        outputs = self._stepper.step()
        for output in outputs.others:  # first tokens are among them, which somebody waits for
            if output.outputs[0].finish_reason == "error":
                self._forget(output.request_id)
                self._connection.send(Failed("vLLM reports an error", output.request_id, is_broken=True))
            elif output.request_id in self._fresh:
                deltas.append(self._delta(output))
        for own_id, token_ids in outputs.plain:
            if (request_id := self._names.get(own_id)) is not None:
                deltas.append(self._plain_delta(request_id, token_ids))
        if deltas:
            self._steps.add(self._computed + sum(len(delta.token_ids) for delta in deltas))
        self._report(deltas)
        if self._searching:
            for delta in deltas:
                self._blame.drew(delta.request_id, len(delta.token_ids))
        for delta in deltas:
            if delta.goes_on:
                self._begin_second_part(delta.request_id)
        self._stats.changed()

    def _report(self, deltas: list[Delta]) -> None:
        """Steps that bring no tokens, as those of a long prompt, are reported too, but not each of them, and none that
        takes no request on: an engine that goes on with these has to look as silent as it is useless.
        """
        now = time.monotonic()
        if deltas or (now - self._reported > _REPORT_INTERVAL and self._pages.progress() != self._progress):
            self._connection.send(Step(deltas))
            self._reported = now
            self._progress = None if deltas else self._pages.progress()

    def _begin_second_part(self, request_id: str) -> None:
        """The first part's pages are kept, or found in the prefix cache."""
        budget = self._budgets.pop(request_id)
        if self._extender.extend(budget.own_id, budget.request.sampling, budget.then):
            return
        self._forget(request_id)
        self._engine.abort_request([request_id])
        self._add(budget.second_part(), budget.arrived)

    def _forget(self, request_id: str) -> None:
        self._fresh.pop(request_id, None)
        self._budgets.pop(request_id, None)
        self._names.pop(self._own_ids.pop(request_id, ""), None)
        self._adapters.end(request_id)
        if self._searching:
            self._blame.left(request_id)

    def _plain_delta(self, request_id: str, token_ids: list[int]) -> Delta:
        """As `_delta`, of tokens that are neither a request's first nor its last, and have no log-probabilities."""
        if (budget := self._budgets.get(request_id)) is None or (kept := budget.feed(token_ids)) is None:
            return Delta(request_id, token_ids)
        return Delta(request_id, token_ids[:kept], goes_on=True)

    def _delta(self, output: RequestOutput) -> Delta:
        request_id = output.request_id
        completion = output.outputs[0]
        token_ids = list(completion.token_ids)
        logprobs = logprobs_of(completion)
        finish = completion.finish_reason
        goes_on = False
        if request_id in self._budgets:
            kept = self._budgets[request_id].feed(token_ids[:-1] if finish == "stop" else token_ids)
            if kept is not None:
                token_ids, logprobs = token_ids[:kept], None if logprobs is None else logprobs[:kept]
                finish, goes_on = None, True
        cached_tokens = prompt_logprobs = None
        if self._fresh[request_id]:
            self._fresh[request_id] = False
            prompt_logprobs = prompt_logprobs_of(output)
            cached_tokens = output.num_cached_tokens or 0
            self._computed += len(output.prompt_token_ids or ()) - cached_tokens
        if finish is not None:
            self._forget(request_id)
        return Delta(
            request_id=request_id,
            token_ids=token_ids,
            cached_tokens=cached_tokens,
            finish=cast("Literal['stop', 'length', 'abort'] | None", finish),
            stop_token_id=token_ids[-1] if finish == "stop" else None,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            goes_on=goes_on,
        )

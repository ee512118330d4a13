"""What all requests share: settings, profile, chat format, engine and metrics; and whether requests are taken now."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import time
from typing import Protocol

from chat_templates.format import ChatFormat
from engine.messages import Ready, Stats
from server.access.access import Access
from server.access.quota import ANYONE, Caller
from server.core.adapters import Adapters
from server.core.bytes_budget import BytesBudget
from server.core.generated_tokens import MOST_BYTES, GeneratedTokens
from server.core.intake import Intake
from server.core.quarantine import Quarantine
from server.core.scheduler import Lane, ModeLoad, Scheduler
from server.core.thoughts import MOST_BYTES as THOUGHTS_BYTES
from server.core.thoughts import Thoughts
from server.engine_client import EngineClient
from server.engine_metrics import EngineLife
from server.errors import UnavailableError, UnknownRequestError
from server.metrics import Metrics
from server.modes.mode import Modes
from server.modes.profile import ModeLimits, Profile
from server.modes.variables import with_defaults
from server.settings import Settings
from server.telemetry.vllm_metrics import EngineView


class RunningChoice(Protocol):
    """What a server knows of a choice under way; `server.core.choice` has the rest."""

    def end_thinking(self) -> bool:
        """Has the thinking closed; whether it was thinking."""
        ...

    def stop(self) -> None:
        """Ends the choice after its next tokens."""
        ...


@dataclass(kw_only=True)
class Serving:
    """One server. `draining` is set once it finishes what runs and takes nothing new.

    `bodies` and `parsed`: the memory of long bodies that come in, and of those that are parsed and not yet planned.
    `choices` are those of the requests under way, by the requests' ids, and `owners` the names of the keys that these
    came with; `started` in Unix seconds. Raises ValueError where the model has none of the profile's modes.
    """

    settings: Settings
    profile: Profile
    fmt: ChatFormat
    engine: EngineClient
    access: Access = field(default_factory=Access)
    metrics: Metrics = field(init=False)
    generated: GeneratedTokens = field(init=False)
    thoughts: Thoughts = field(init=False)
    modes: Modes = field(init=False)
    scheduler: Scheduler = field(init=False)
    bodies: BytesBudget = field(init=False)
    parsed: BytesBudget = field(init=False)
    quarantine: Quarantine = field(default_factory=Quarantine)
    intake: Intake = field(init=False)
    adapters: Adapters = field(init=False)
    draining: bool = False
    choices: dict[str, Sequence[RunningChoice]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    started: int = field(default_factory=lambda: int(time()))

    def __post_init__(self) -> None:
        self.generated = GeneratedTokens(self.fmt, MOST_BYTES if self.settings.remember_generated else 0)
        self.thoughts = Thoughts(THOUGHTS_BYTES if self.settings.remember_generated else 0)
        self.modes = self._modes(self.profile, self.fmt)
        self.adapters = Adapters(self.engine, self.settings.lora_modules)
        self.bodies = BytesBudget(self.settings.max_bodies_bytes)
        self.parsed = BytesBudget(self.settings.max_parsed_bytes)
        self.scheduler = Scheduler(self._places, _loads(self.modes))
        view = EngineView(
            model_name=self.settings.model_name,
            ready=lambda: self.engine.status.state == "ready" and not self.draining,
            load=self.engine_load,
            replicas=lambda: [(one.status.state == "ready", _load_of(one)) for one in self.engine.replicas],
            queued=lambda: sum(self.scheduler.waiting(lane) for lane in Lane),
            cache_config=lambda: {} if self.engine.ready is None else self.engine.ready.cache_config,
            max_adapters=lambda: 0 if self.engine.ready is None else self.engine.ready.max_adapters,
        )
        self.metrics = Metrics(view, list(self.modes.by_name))
        limits = _limits(self.modes)
        self.intake = Intake(self.settings, limits, self.scheduler, self.metrics, lambda: self.engine.ready)
        self.metrics.registry.register(EngineLife(self.engine, self._lanes, self.settings.weights))

    def adopt(self, profile: Profile, fmt: ChatFormat) -> None:
        """Serves by another profile from now on, for which `fmt` was made; what runs goes on as it was planned.

        Raises ValueError, and changes nothing, where the model has none of its modes, or where its format is another:
        answers under way are read by that.
        """
        if profile.format != self.profile.format:
            raise ValueError("its [format] is not the one that is served; that needs a new start")
        modes = self._modes(profile, fmt)
        self.profile, self.fmt, self.modes = profile, fmt, modes
        self.scheduler.adopt(_loads(modes))
        self.intake.limits |= _limits(modes)

    def _modes(self, profile: Profile, fmt: ChatFormat) -> Modes:
        """With what the operator has the chat template told. Raises ValueError."""
        return with_defaults(Modes.of(profile, fmt), self.settings.default_chat_template_kwargs)

    def _places(self) -> int:
        """How many generations the engine runs at once."""
        return self.engine.ready.max_num_seqs if self.engine.ready is not None else 1

    def _lanes(self) -> dict[str, tuple[int, int]]:
        """Places held and waited for, by lane."""
        scheduler = self.scheduler
        return {lane.name.lower(): (scheduler.running(lane), scheduler.waiting(lane)) for lane in Lane}

    def admit(self) -> Ready:
        """The engine's facts, if it takes requests now; raises UnavailableError."""
        if self.draining:
            raise self.unavailable("the server is shutting down")
        ready = self.engine.ready
        if self.engine.status.state != "ready" or ready is None:
            raise self.unavailable(self.describe_engine())
        return ready

    @property
    def running(self) -> int:
        """How many requests are under way."""
        return len(self.choices)

    @contextmanager
    def one_more(self, request_id: str, choices: Sequence[RunningChoice], client: str = "") -> Iterator[None]:
        """Lists a request as running during the block, as one of the key with the name `client`."""
        self.choices[request_id], self.owners[request_id] = choices, client
        try:
            yield
        finally:
            del self.choices[request_id], self.owners[request_id]

    def end_thinking(self, request_id: str, caller: Caller = ANYONE) -> list[int]:
        """Has the thinking of a running request closed; the choices that were thinking.

        Raises UnknownRequestError, also for one of another key, unless the caller's is an operator's.
        """
        return [index for index, choice in enumerate(self._choices_of(request_id, caller)) if choice.end_thinking()]

    def cancel(self, request_id: str, caller: Caller = ANYONE) -> None:
        """Ends a running request after its next tokens. Raises UnknownRequestError, as `end_thinking`."""
        for choice in self._choices_of(request_id, caller):
            choice.stop()

    def _choices_of(self, request_id: str, caller: Caller) -> Sequence[RunningChoice]:
        choices = self.choices.get(request_id)
        if choices is None or not (caller.is_operator or self.owners[request_id] == caller.name):
            raise UnknownRequestError(request_id)
        return choices

    def end_all_thinking(self) -> int:
        """Has the thinking of all running requests closed; of how many choices."""
        return sum(choice.end_thinking() for choices in self.choices.values() for choice in choices)

    def describe_engine(self) -> str:
        """What keeps the engine from taking requests, in words."""
        status = self.engine.status
        if status.state == "loading":
            return f"the model is loading, {status.fraction:.0%}: {status.detail}"
        return f"engine {status.state}: {status.detail}" if status.detail else f"engine {status.state}"

    def unavailable(self, reason: str) -> UnavailableError:
        """The error for a request that cannot be served now."""
        message = f"{reason[:1].upper()}{reason[1:]}. Try again."
        return UnavailableError(message, retry_after=self.settings.retry_after)

    def engine_load(self) -> Stats:
        """The engine's last report; before the first one nothing runs, and pages are as they were when it got ready."""
        return _load_of(self.engine)


def _load_of(engine: EngineClient) -> Stats:
    return engine.stats or Stats(0, 0, () if engine.ready is None else engine.ready.page_groups)


def _limits(modes: Modes) -> dict[str, ModeLimits]:
    return {name: mode.profile.limits for name, mode in modes.by_name.items() if mode.auto is None}


def _loads(modes: Modes) -> dict[str, ModeLoad]:
    """What the scheduler knows of the modes. One that chooses holds places as the two that it chooses between."""
    return {
        name: ModeLoad(mode.thinks, mode.profile.limits.running or math.inf)
        for name, mode in modes.by_name.items()
        if mode.auto is None
    }

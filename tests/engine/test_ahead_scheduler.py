"""Random work through vLLM's scheduler that runs ahead, and through ours: the same tokens, ends and pages.

Requests come, end, are aborted, follow up, go on behind budgets, and lose their pages; prompts are cut into chunks, and
windows slide. The executor draws from a hash of request and position, and holds the tables that the worker would have
against those of the manager.
"""

import hashlib
import os
import random
from pathlib import Path
from typing import Any, cast

import pytest

from engine.messages import Abort, Continuation, Delta, Failed, FromEngine, Generate, Sampling, Step
from engine.vllm_internals.attach import Extends, Internals, Recovers, attach
from engine.vllm_internals.contract import AHEAD_PATHS, AHEAD_ROOM, DIRECT_OUTPUTS, SHORT_SCHEDULE, SHORT_UPDATE

pytestmark = pytest.mark.usefixtures("fresh_environment")

STOP, THINK_END = 2, 1
STEPS, ARRIVALS_END = 300, 220
SEEDS = int(os.environ.get("TWOGEAR_RANDOM_SEEDS", "1"))
"""Of each of the four shapes, with each of the four parts; 12 make 192 comparisons."""
FOUND = {"scarce pages": {2}}
"""Seeds that once found something, and are played whatever SEEDS is."""
SHAPES = {
    "scarce pages": {"pages": 320, "max_num_seqs": 32, "window": 256, "max_num_batched_tokens": 512},
    "chunked prompts": {"pages": 6000, "max_num_seqs": 16, "window": 64, "max_num_batched_tokens": 96},
    "many": {"pages": 20000, "max_num_seqs": 96, "window": 256},
}
SWITCHES = ("TWOGEAR_PAGE_ROOM", "TWOGEAR_SHORT_UPDATE", "TWOGEAR_SHORT_SCHEDULE", "TWOGEAR_DIRECT_OUTPUTS")
PARTS = {"room": 1, "room and update": 2, "all in the scheduler": 3, "all": 4}
"""How many of the switches are on."""


def draw(seed: int, position: int) -> int:
    number = int.from_bytes(hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=4).digest(), "big")
    return STOP if number % 60 == 0 else 3 + number % 900


class Recorder:
    """In the front end's place: what it is told, step by step."""

    def __init__(self) -> None:
        self.steps: list[list[Any]] = []

    def send(self, message: FromEngine) -> None:
        if isinstance(message, Failed):
            self.steps[-1].append(message.message)
        elif isinstance(message, Step):
            self.steps[-1] += message.deltas


class NoExtender:
    def extend(self, *_args: Any) -> bool:
        return False

    def prioritize(self, *_args: Any) -> None:
        pass


def checking_executor(pages: int, window: int) -> Any:  # noqa: C901 - a class of its own, whose base imports vLLM
    from benchmarks.host.fake_engine import AnsweringExecutor

    class Checking(AnsweringExecutor):
        memory = pages * 262144

        def _init_executor(self) -> None:
            super()._init_executor()
            self.rows: dict[str, list[int]] = {}  # first id, tokens, computed
            self.tables: dict[str, list[list[int]]] = {}
            self.scheduler: Any = None

        def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
            out = scheduler_output
            for gone in out.finished_req_ids | (out.preempted_req_ids or set()):
                self.rows.pop(gone, None)
            for new in out.scheduled_new_reqs:
                self._begin(new)
            cached = out.scheduled_cached_reqs
            known = zip(cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True)
            for name, computed, new_pages in known:
                self._go_on(name, computed, new_pages, resumed=name in cached.resumed_req_ids)
            for name in out.num_scheduled_tokens:
                self._check_table(name)
            return super().execute_model(out, non_block)

        def _begin(self, new: Any) -> None:
            ids = new.prefill_token_ids or new.prompt_token_ids
            self.rows[new.req_id] = [ids[0], len(ids), new.num_computed_tokens]
            self.tables[new.req_id] = [list(group) for group in new.block_ids]

        def _go_on(self, name: str, computed: int, new_pages: Any, resumed: bool) -> None:
            if resumed:
                request = self.scheduler.requests[name]
                self.rows[name] = [request.all_token_ids[0], request.num_tokens, computed]
                self.tables[name] = [[] for _ in self.tables[name]]
            self.rows[name][2] = computed
            for table, ids in zip(self.tables[name], new_pages or ([],) * len(self.tables[name]), strict=True):
                table.extend(ids)

        def _check_table(self, name: str) -> None:
            held = self.scheduler.kv_cache_manager.get_block_ids(name)
            for mine, theirs in zip(self.tables[name], held, strict=True):
                assert len(mine) == len(theirs)
                assert all(their in (0, my) for my, their in zip(mine, theirs, strict=True))

        def _row(self, name: str, computed: int) -> list[int]:
            row = self.rows[name]
            assert row[2] + computed <= row[1]
            if row[2] + computed < row[1]:
                return []
            row[1] += 1
            return [draw(row[0], row[1] - 1)]

    Checking.window = window
    return Checking


class Play:
    """Random work on one engine."""

    def __init__(self, engine: Any, internals: Internals, seed: int) -> None:
        from engine.loop import EngineLoop

        self.told = Recorder()
        self._pages = internals.pages
        self._engine = engine
        self._loop = EngineLoop(engine, internals, (STOP,), cast("Any", self.told))
        self._rng = random.Random(seed)
        self._known: dict[str, list[int]] = {}
        self._texts: list[list[int]] = []
        self._number = 0

    def run(self, *, quiet: bool = False) -> list[list[Delta]]:
        """The deltas of each step; the engine is as it was before. `quiet`: nobody comes and nobody is aborted."""
        for step in range(0 if quiet else STEPS):
            self.told.steps.append([])
            if step < ARRIVALS_END and self._rng.random() < 0.25:
                for _ in range(self._rng.randint(1, 4)):
                    self._arrive()
            if self._known and self._rng.random() < 0.03:
                gone = self._rng.choice(sorted(self._known))
                self._loop._handle(Abort(gone))
                del self._known[gone]
            self._step()
        while self._pages.has_work():
            self.told.steps.append([])
            self._step()
        assert self._engine.reset_prefix_cache()  # no page is held
        return self.told.steps

    def _step(self) -> None:
        if self._pages.has_work():
            self._loop._step()
        for delta in self.told.steps[-1]:
            if delta.request_id in self._known:
                self._known[delta.request_id] += delta.token_ids
                if delta.finish:
                    self._texts.append(self._known.pop(delta.request_id))

    def _arrive(self) -> None:
        rng, name = self._rng, f"q{self._number}"
        self._number += 1
        start = [rng.randint(3, 900)]
        if self._texts and rng.random() < 0.4:
            start = rng.choice(self._texts)[: rng.randint(20, 300)]
        ids = start + [rng.randint(3, 900) for _ in range(rng.randint(0, 120))]
        sampling = Sampling(
            max_tokens=rng.choice([1, 2, 17, 64, 200]),
            ignore_eos=rng.random() < 0.3,
            stop_token_ids=tuple(rng.sample(range(3, 900), rng.randint(0, 3))),
        )
        then = None
        if rng.random() < 0.2:
            then = Continuation(rng.randint(0, 40), THINK_END, (5, 6, 7), Sampling(max_tokens=rng.randint(1, 30)))
        self._known[name] = list(ids)
        self._loop._handle(Generate(name, ids, sampling, rng.choice([0, 0, 0, 1]), then))


def compared(steps: list[list[Delta]]) -> list[list[tuple[Any, ...]]]:
    """What has to be the same: all but how much of a prompt was found in the prefix cache."""
    return [
        sorted((one.request_id, tuple(one.token_ids), one.finish, one.stop_token_id, one.goes_on) for one in step)
        for step in steps
    ]


def shape_with(pages: int) -> dict[str, Any]:
    return {"pages": pages, "max_num_seqs": 32, "window": 256, "max_num_batched_tokens": 512}


def new_engine(folder: Path, shape: dict[str, Any], ahead: bool = True, make_executor: Any = checking_executor) -> Any:
    from benchmarks.host.fake_engine import fake_engine

    options = {name: value for name, value in shape.items() if name not in {"pages", "window"}}
    executor = make_executor(shape["pages"], shape["window"])
    engine = fake_engine(folder, executor, ahead=ahead, max_model_len=1000, **options)
    core: Any = engine.engine_core
    core.engine_core.model_executor.scheduler = core.engine_core.scheduler
    return engine


def vllms_own(engine: Any) -> Internals:
    """Nothing of ours but the counts."""
    from engine.vllm_internals.page_counter import PageCounter
    from engine.vllm_internals.steps import PlainSteps

    core = engine.engine_core.engine_core
    return Internals(PageCounter(core), cast("Extends", NoExtender()), cast("Recovers", None), PlainSteps(engine), ())


@pytest.mark.parametrize(("shape", "runner"), [*((shape, "V2") for shape in SHAPES), ("scarce pages", "V1")])
def test_random_work_comes_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, runner: str
) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(runner == "V2")))
    monkeypatch.setattr("vllm.config.vllm.VllmConfig._validate_v2_model_runner", lambda _self: None)
    plain = new_engine(tmp_path, SHAPES[shape])
    assert plain.vllm_config.use_v2_model_runner is (runner == "V2")
    internals = vllms_own(plain)
    engines = []
    for on in PARTS.values():
        for number, switch in enumerate(SWITCHES):
            monkeypatch.setenv(switch, str(int(number < on)))
        engine = new_engine(tmp_path, SHAPES[shape])
        ours = attach(engine)
        statuses = {status.name: status for status in ours.fast_paths}
        paths = (*AHEAD_PATHS, DIRECT_OUTPUTS)
        assert [statuses[path.name].on for path in paths] == [number < on for number in range(4)]
        assert all(statuses[path.name].reason for path in paths)
        engines.append((engine, ours._replace(extender=internals.extender)))
    for seed in sorted({*range(SEEDS), *FOUND.get(shape, ())}):
        expected = compared(Play(plain, internals, seed).run())
        assert sum(map(len, expected)) > 1000
        for part, (engine, ours) in zip(PARTS, engines, strict=True):
            assert compared(Play(engine, ours, seed).run()) == expected, (part, seed)
    if shape == "scarce pages":
        assert internals.pages.preemptions() >= 5  # else nothing was tried
    assert [ours.pages.preemptions() for _, ours in engines] == [internals.pages.preemptions()] * len(engines)


def test_an_engine_they_are_not_written_for_keeps_vllms_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine(tmp_path, SHAPES["many"])
    scheduler = engine.engine_core.engine_core.scheduler
    own, pool = type(scheduler), type(scheduler.kv_cache_manager)
    scheduler.return_sampling_mask = True
    found = {status.name: status for status in attach(engine).fast_paths}
    for path in (AHEAD_ROOM, SHORT_UPDATE, SHORT_SCHEDULE):
        assert (found[path.name].on, found[path.name].reason) == (False, "outputs hold more than tokens")
    assert (type(scheduler), type(scheduler.kv_cache_manager)) == (own, pool)
    scheduler.return_sampling_mask = False
    monkeypatch.setenv("TWOGEAR_PAGE_ROOM", "0")
    found = {status.name: status for status in attach(engine).fast_paths}
    assert [found[path.name].on for path in (AHEAD_ROOM, SHORT_UPDATE, SHORT_SCHEDULE)] == [False, True, False]
    assert found[SHORT_SCHEDULE.name].reason == f"it needs {AHEAD_ROOM.name}"


def test_a_scheduler_that_waits_for_tokens_keeps_its_own(tmp_path: Path) -> None:
    from benchmarks.host.fake_engine import fake_engine

    found = {status.name: status for status in attach(fake_engine(tmp_path, ahead=False)).fast_paths}
    for path in AHEAD_PATHS:
        assert (found[path.name].on, found[path.name].unexpected) == (False, False)
    assert found[DIRECT_OUTPUTS.name].on


class Counting:
    """The extender of an engine, and how often it extended."""

    def __init__(self, extender: Extends) -> None:
        self._extender = extender
        self.extended = self.refused = 0

    def extend(self, *args: Any) -> bool:
        done = self._extender.extend(*args)
        self.extended += done
        self.refused += not done
        return done

    def prioritize(self, *args: Any) -> None:
        self._extender.prioritize(*args)


def by_request(steps: list[list[Delta]]) -> dict[str, list[Any]]:
    """Of each request its tokens, where it went on, and how it ended, in whichever steps that came."""
    told: dict[str, list[Any]] = {}
    for delta in (delta for step in steps for delta in step):
        row = told.setdefault(delta.request_id, [])
        row += delta.token_ids
        row += [word for word in ("goes on" if delta.goes_on else None, delta.finish) if word]
    return told


def with_budgets(engine: Any, internals: Internals, extender: Any) -> list[list[Delta]]:
    """What becomes of sixty requests at once, of which `b7` may draw 7 tokens before it goes on."""
    rng = random.Random(5)
    play = Play(engine, internals._replace(extender=extender), seed=5)
    for number in range(60):
        ids = [rng.randint(3, 900) for _ in range(rng.randint(1, 60))]
        second = Sampling(max_tokens=1 + number % 30, stop_token_ids=(9,))
        then = Continuation(number % 41, THINK_END, (5, 6, 7), second)
        play._loop._handle(Generate(f"b{number}", ids, Sampling(max_tokens=300, stop_token_ids=(9,)), 0, then))
    return play.run(quiet=True)


def budgets_spent(told: dict[str, list[Any]]) -> int:
    """How many were. Each of them to the last token, and not one more."""
    spent = {name: row.index("goes on") - 1 for name, row in told.items() if "goes on" in row}
    assert all(number == int(name[1:]) % 41 for name, number in spent.items())
    return len(spent)


@pytest.mark.parametrize(("ahead", "switched"), [(True, "1"), (True, "0"), (False, "1")])
@pytest.mark.parametrize("pages", [320, 20000])
def test_budgets_that_are_extended_in_place_are_as_if_added_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool, switched: str, pages: int
) -> None:
    """Where the scheduler runs ahead a token is under way that nobody asked for; without, it is the same test."""
    for switch in SWITCHES:
        monkeypatch.setenv(switch, switched)
    engine = new_engine(tmp_path, shape_with(pages), ahead)
    ours = attach(engine)
    counting = Counting(ours.extender)
    extended, added = (by_request(with_budgets(engine, ours, extender)) for extender in (counting, NoExtender()))
    assert extended == added
    assert budgets_spent(extended) > 10
    assert counting.extended > 10 * max(counting.refused, 1) or pages < 1000

"""What is computed before Ready: every kind that a client can ask for, and nothing of it stays. No model is needed."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.messages import Generate
from engine.sampling import SAMPLING_FIELDS

pytestmark = pytest.mark.usefixtures("vllm_ignoring_warnings")


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, compiles: bool, patience: float = 1e9
) -> tuple[Any, list[Generate]]:
    """The engine afterwards, and what its loop was asked for."""
    from benchmarks.host.fake_engine import fake_engine
    from engine import warm_up
    from engine.loop import EngineLoop
    from engine.vllm_internals.attach import attach

    asked: list[Generate] = []
    handle = EngineLoop._handle

    def noting(loop: EngineLoop, message: Any) -> None:
        asked.append(message)
        sampling = msgspec.structs.replace(message.sampling, logprobs=None)  # which this executor has none of
        handle(loop, msgspec.structs.replace(message, sampling=sampling))

    monkeypatch.setattr(EngineLoop, "_handle", noting)
    monkeypatch.setattr(warm_up, "PATIENCE", patience)
    engine = fake_engine(folder, ahead=compiles, max_num_seqs=48)
    warm_up.warm_up(engine, attach(engine), (2,), compiles=compiles)
    return engine, asked


@pytest.mark.parametrize("compiles", [False, True])
def test_every_kind_is_computed_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiles: bool
) -> None:
    engine, asked = run(tmp_path, monkeypatch, compiles=compiles)
    usual = Generate("", [0], asked[0].sampling).sampling
    for field in (*SAMPLING_FIELDS, "seed", "min_tokens", "logit_bias", "allowed_token_ids", "bad_words", "logprobs"):
        assert any(getattr(one.sampling, field) != getattr(usual, field) for one in asked), field
    assert any(one.then for one in asked)
    assert any(one.sampling.grammar for one in asked)
    assert max(len(one.prompt_ids) for one in asked) >= 256
    assert len({one.request_id for one in asked}) == len(asked)
    scheduler = engine.engine_core.engine_core.scheduler
    assert not engine.has_unfinished_requests()
    assert not scheduler.requests
    assert not scheduler.finished_req_ids
    assert scheduler.kv_cache_manager.usage == 0


def test_kernels_for_few_and_many_rows_are_called_where_they_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, asked = run(tmp_path, monkeypatch, compiles=True)
    rows = [one.request_id.split() for one in asked if one.request_id.split()[1].isdecimal()]
    most = {tuple(words[1:3]): int(words[3]) + 1 for words in rows}
    expected = (2, 4, 8, 16, 32, 48, 48)  # no more at once than the engine runs
    assert list(most.values()) == [*expected] * 3


def test_a_slow_cpu_begins_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, asked = run(tmp_path, monkeypatch, compiles=False, patience=-1)
    assert asked == []

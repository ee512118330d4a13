"""vLLM's sampler of its V2 runner, and ours: what a GPU would read is the same after every step."""

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.vllm_internals.attach import attach
from engine.vllm_internals.contract import FEWER_COPIES
from tests.engine.test_contract import fake_engine, statuses

pytestmark = pytest.mark.usefixtures("vllm_ignoring_warnings")
PLACES, VOCABULARY = 8, 100


class _Kernel:
    """In the place of vLLM's kernel: the rows of `output` that were staged."""

    def __getitem__(self, _grid: Any) -> Any:
        return self._write

    def _write(self, *arguments: Any, **_: Any) -> None:
        output, stride, rows, starts, contents, ends = arguments[:6]
        flat, begin = output.view(-1), 0
        for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
            at = row * stride + start
            flat[at : at + end - begin] = contents[begin:end]
            begin = end


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Copies to another tensor, kernels in Python; which requests tokens were counted for."""
    counted: list[Any] = []
    buffers = "vllm.v1.worker.gpu.buffer_utils"
    monkeypatch.setattr(f"{buffers}.is_uva_available", lambda: False)
    monkeypatch.setattr(f"{buffers}._apply_write_kernel", _Kernel())
    monkeypatch.setattr("vllm.v1.worker.gpu.sample.penalties.bincount", lambda rows, *_: counted.append(rows.tolist()))
    return counted


def sampler() -> Any:
    from vllm.v1.worker.gpu.sample.sampler import Sampler
    from vllm.v1.worker.gpu.states import RequestState

    device = torch.device("cpu")
    states = RequestState(PLACES, 64, 64, 0, VOCABULARY, device)
    config: Any = SimpleNamespace(reasoning_config=None)
    return Sampler(config, PLACES, VOCABULARY, device, states)


def worker(its_sampler: Any) -> Any:
    return SimpleNamespace(model_runner=SimpleNamespace(sampler=its_sampler))


def any_params(rng: random.Random) -> Any:
    from vllm.sampling_params import SamplingParams

    params = SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.0]),
        top_p=rng.choice([1.0, 0.9]),
        top_k=rng.choice([0, 5]),
        min_p=rng.choice([0.0, 0.1]),
        seed=rng.randint(0, 99),
        presence_penalty=rng.choice([0.0, 0.5]),
        repetition_penalty=rng.choice([1.0, 1.1]),
        min_tokens=rng.choice([0, 3]),
        stop_token_ids=rng.sample(range(VOCABULARY), 3),
        logit_bias=rng.choice([None, {3: -1.0, 4: 2.0}]),
        allowed_token_ids=rng.choice([None, [1, 2, 3]]),
        logprobs=rng.choice([None, 2]),
    )
    params._bad_words_token_ids = rng.choice([None, [[1, 2], [3]]])
    return params


def on_device(its_sampler: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """What the GPU reads, by name."""
    parts = (its_sampler.sampling_states, *its_sampler.logits_processors, its_sampler.logprob_token_ids_state)
    for part in parts:
        for name, value in vars(part).items():
            if isinstance(getattr(value, "gpu", None), torch.Tensor):
                yield f"{type(part).__name__}.{name}", value.gpu


def copies(its_sampler: Any) -> int:
    """Into which of its buffers the last temperatures went: another with each copy."""
    return int(its_sampler.sampling_states.temperature.pool._curr)


@pytest.mark.parametrize("seed", range(3))
def test_the_gpu_reads_the_same_after_every_step(on_cpu: list[Any], seed: int) -> None:
    from engine.vllm_internals.fewer_copies import take_over

    rng, vllms, ours = random.Random(seed), sampler(), sampler()
    assert take_over(worker(ours)) is None
    for one in (vllms, ours):
        one.apply_staged_writes()  # whatever there was before
    for _ in range(60):
        new = [(place, any_params(rng)) for place in rng.sample(range(PLACES), rng.choice([0, 0, 1, 3]))]
        before = copies(ours)
        counted = []
        for one in (vllms, ours):
            for place, params in new:
                one.add_request(place, params)
            one.apply_staged_writes()
            counted.append(on_cpu.copy())
            on_cpu.clear()
        assert counted[0] == counted[1]
        assert (copies(ours) != before) == bool(new)
        read = dict(on_device(vllms))
        assert len(read) > 15
        for name, tensor in on_device(ours):
            assert torch.equal(tensor, read[name]), name


@pytest.mark.usefixtures("on_cpu")
def test_a_sampler_that_may_have_more_to_copy_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.vllm_internals.fewer_copies import take_over

    other = sampler()
    own = type(other)
    other.logits_processors.append(SimpleNamespace())
    assert take_over(worker(other)) == "logits are changed by types.SimpleNamespace"
    assert take_over(worker(SimpleNamespace())) == "the worker draws with types.SimpleNamespace"
    assert take_over(worker(None)) is None  # another process draws
    assert take_over(object()) == "the worker has no model runner"
    monkeypatch.setenv("TWOGEAR_FEWER_COPIES", "0")
    plain = sampler()
    assert take_over(SimpleNamespace(worker=worker(plain))) == "TWOGEAR_FEWER_COPIES is 0"
    assert type(other) is type(plain) is own


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("v2", [False, True])
def test_the_v2_runners_sampler_is_taken_over_at_the_start(v2: bool) -> None:
    engine, its_sampler = fake_engine([{}], None), sampler()
    engine.vllm_config.use_v2_model_runner = v2
    engine.collective_rpc = lambda function: [function(worker(its_sampler))]
    for _ in range(2):  # an engine may be attached to again
        status = statuses(engine)[FEWER_COPIES.name]
        assert (status.on, status.unexpected) == (v2, False)
    assert (type(its_sampler).__name__ == "FewerCopiesSampler") == v2
    assert attach(engine).fast_paths

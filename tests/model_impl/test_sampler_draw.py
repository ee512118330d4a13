"""The fast sampler equals the sorted one: which tokens it keeps, which it draws and how often, alone and in a batch."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_impl.cpu.native import KernelsUnavailableError, load
from model_impl.sampling import draw as sampler_draw
from model_impl.sampling.draw import Drawer, Limits
from tests.model_impl.reference_sampler import keep

FLOAT32_NOISE = 2e-6


class Case(NamedTuple):
    logits: torch.Tensor
    temperature: float
    top_k: int
    top_p: float
    min_p: float


@pytest.fixture(scope="module", params=["kernel", "numpy"])
def drawer(request: pytest.FixtureRequest) -> Drawer:
    if request.param == "numpy":
        return Drawer()
    try:
        return Drawer(load())
    except KernelsUnavailableError as error:
        pytest.skip(str(error))


def draw(drawer: Drawer, cases: list[Case], uniforms: np.ndarray) -> list[int]:
    """All cases, of one vocabulary, in one batch, with others between them."""
    limits = Limits(
        np.array([case.top_k for case in cases]),
        np.array([case.top_p for case in cases]),
        np.array([case.min_p for case in cases]),
    )
    temperature = torch.tensor([case.temperature for case in cases])
    logits = torch.stack([row for case in cases for row in (case.logits, torch.full_like(case.logits, 3.0))])
    tokens = drawer.draw(logits, 2 * np.arange(len(cases)), temperature, uniforms, limits)
    return [int(token) for token in tokens]


def kept(drawer: Drawer, case: Case) -> np.ndarray:
    """What the fast draw keeps, found out by drawing with many uniforms."""
    rows = 1024
    return np.unique(draw(drawer, [case] * rows, (np.arange(rows) + 0.5) / rows))


def random_logits(rng: np.random.Generator, vocabulary: int) -> torch.Tensor:
    """Flat, peaked, long-tailed, masked by a grammar, with ties (bfloat16 has many), or all equal."""
    kind = rng.integers(6)
    logits = rng.normal(size=vocabulary) * rng.choice([0.1, 1.0, 4.0, 12.0])
    if kind == 1:
        logits[rng.integers(vocabulary, size=5)] += 30
    elif kind == 2:
        logits = -rng.exponential(3.0, size=vocabulary)
    elif kind == 3:
        logits[rng.random(vocabulary) < 0.97] = -np.inf
        logits[rng.integers(vocabulary)] = 1.0
    elif kind == 4:
        logits[:] = 7.0
    tensor = torch.tensor(logits, dtype=torch.float32)
    return tensor.bfloat16().float() if rng.random() < 0.5 else tensor


def random_case(rng: np.random.Generator, vocabulary: int) -> Case:
    return Case(
        random_logits(rng, vocabulary),
        float(rng.choice([1e-4, 0.3, 1.0, 1.7, 50.0])),
        int(rng.choice([1, 2, 20, 63, 64, 65, 500, vocabulary])) if rng.random() < 0.5 else vocabulary,
        float(rng.choice([1e-9, 0.05, 0.5, 0.9, 0.95, 0.999, 1.0])),
        float(rng.choice([0.0, 0.0, 1e-6, 0.05, 0.5, 1.0])),
    )


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocabulary=st.sampled_from([1, 2, 63, 64, 65, 127, 128, 129, 1000, 8192, 8193, 9999, 20000]),
    rows=st.sampled_from([1, 2, 5]),
)
def test_each_draw_is_the_sorted_one(drawer: Drawer, seed: int, vocabulary: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    cases = [random_case(rng, vocabulary) for _ in range(rows)]
    uniforms = rng.random(rows)
    for case, uniform, token in zip(cases, uniforms, draw(drawer, cases, uniforms), strict=True):
        row = keep(*case)
        if row.margin < FLOAT32_NOISE:
            continue  # which token is the last to be kept hangs on rounding
        assert row.mass[token] > 0, f"{token} is not kept"
        assert row.distance(token, uniform) < FLOAT32_NOISE


@pytest.mark.parametrize("vocabulary", [200, 9000])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (None, 0.9, 0.0),
        (None, 0.5, 0.0),
        (7, 1.0, 0.0),
        (100, 0.7, 0.0),
        (None, 1.0, 0.3),
        (9, 0.8, 0.1),
        (1, 1.0, 0.0),
        (None, 1e-7, 0.0),
    ],
)
def test_the_kept_sets_are_identical(
    drawer: Drawer, vocabulary: int, top_k: int | None, top_p: float, min_p: float
) -> None:
    rng = np.random.default_rng(vocabulary)
    base = torch.tensor(rng.normal(size=vocabulary), dtype=torch.float32)
    peaked = base.clone()
    peaked[rng.choice(vocabulary, 150, replace=False)] += 14
    for logits in (peaked, peaked.bfloat16().float()):
        case = Case(logits, 1.0, top_k or vocabulary, top_p, min_p)
        row = keep(*case)
        assert row.margin > FLOAT32_NOISE
        likely = np.flatnonzero(row.mass > 1 / 500)  # a smaller one may lie between all of the uniforms
        found = kept(drawer, case)
        assert np.isin(likely, found).all()
        assert (row.mass[found] > 0).all()


@pytest.mark.parametrize("limits", [(None, None, None), (None, 0.9, None), (40, None, None), (40, 0.9, 0.02)])
def test_shares_of_draws_are_the_probabilities(
    drawer: Drawer, limits: tuple[int | None, float | None, float | None]
) -> None:
    """Chi-square over 40,000 draws, in a small vocabulary and in a large one of which few tokens are likely."""
    rng = np.random.default_rng(5)
    top_k, top_p, min_p = limits
    for vocabulary in (60, 10_000):
        logits = torch.full((vocabulary,), -12.0)
        logits[torch.from_numpy(rng.choice(vocabulary, 60, replace=False))] = torch.tensor(
            rng.normal(size=60), dtype=torch.float32
        )
        row = keep(logits, 0.8, top_k or vocabulary, top_p or 1.0, min_p or 0.0)
        rows, rounds = 400, 100
        many = Limits(*(None if value is None else np.full(rows, value) for value in limits))
        batch, every, temperature = logits.expand(rows, -1), np.arange(rows), torch.full((rows,), 0.8)
        tokens = np.concatenate([drawer.draw(batch, every, temperature, rng.random(rows), many) for _ in range(rounds)])
        counts = np.bincount(tokens, minlength=vocabulary)
        assert counts[row.mass == 0].sum() == 0
        expected = row.mass / row.mass.sum() * rows * rounds
        likely = expected >= 5
        observed = np.append(counts[likely], counts[~likely].sum())
        wanted = np.append(expected[likely], max(expected[~likely].sum(), 1e-9))
        statistic = ((observed - wanted) ** 2 / wanted)[wanted >= 5].sum()
        freedom = int((wanted >= 5).sum()) - 1
        assert statistic < freedom + 5 * np.sqrt(2 * freedom), (statistic, freedom)


def test_a_row_draws_the_same_alone_as_in_any_batch(drawer: Drawer) -> None:
    rng = np.random.default_rng(2)
    for vocabulary in (1000, 20_001):
        cases = [random_case(rng, vocabulary) for _ in range(24)]
        uniforms = rng.random(24)
        together = draw(drawer, cases, uniforms)
        assert together == [draw(drawer, [case], uniforms[i : i + 1])[0] for i, case in enumerate(cases)]
        assert together[5:9] == draw(drawer, cases[5:9], uniforms[5:9])


def test_a_batch_larger_than_the_scratch_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    cases = [random_case(rng, 700) for _ in range(11)]
    uniforms = rng.random(11)
    at_once = draw(Drawer(), cases, uniforms)
    monkeypatch.setattr(sampler_draw, "SCRATCH", 2100)
    assert draw(Drawer(), cases, uniforms) == at_once


def test_logits_stay_as_they_are(drawer: Drawer) -> None:
    case = random_case(np.random.default_rng(4), 500)
    before = case.logits.clone()
    draw(drawer, [case], np.array([0.3]))
    assert torch.equal(case.logits, before)


@pytest.mark.parametrize("limits", [Limits(), Limits(top_p=np.full(4, 0.9)), Limits(top_k=np.full(4, 5))])
@pytest.mark.parametrize("vocabulary", [3, 100, 9000])
def test_rows_without_a_distribution_draw_a_token(drawer: Drawer, limits: Limits, vocabulary: int) -> None:
    logits = torch.zeros(4, vocabulary)
    logits[0] = -torch.inf
    logits[1, 2] = torch.inf
    logits[2, 1] = torch.nan
    logits[3, 2] = 1e9
    tokens = drawer.draw(logits, np.arange(4), torch.ones(4), np.full(4, 1 - 2**-53), limits)
    assert tokens[0] < vocabulary
    assert tokens[1:].tolist() == [2, 1, 2]


@pytest.mark.parametrize("vocabulary", [70, 9000])
def test_the_ends_of_the_uniforms_draw_kept_tokens(drawer: Drawer, vocabulary: int) -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        case = random_case(rng, vocabulary)
        ids = np.flatnonzero(keep(*case).mass > 0)
        low, high = draw(drawer, [case, case], np.array([0.0, 1 - 2**-53]))
        assert low in ids
        assert high in ids

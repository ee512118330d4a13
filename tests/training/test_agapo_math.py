"""Advantages and losses against numbers worked by hand, against plain Python in double precision, and on a bandit."""

import math
import random
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.agapo import advantage, loss

ALL_WRONG = -0.1
rewards_of_groups = st.integers(1, 5).flatmap(
    lambda groups: st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4), min_size=groups, max_size=6)
)


def double(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_leave_one_out_by_hand() -> None:
    found = advantage.leave_one_out(double([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]))
    assert found.tolist() == [
        pytest.approx([1, -1 / 3, -1 / 3, -1 / 3]),
        pytest.approx([2 / 3, 2 / 3, -2 / 3, -2 / 3]),
        [0, 0, 0, 0],
    ]


def test_agapo_by_hand() -> None:
    """Before normalising 1, three times -1/3, four times -0.1: mean -0.05, variance 1.353333 / 8, spread 0.411299."""
    found = advantage.agapo(double([[1, 0, 0, 0], [0, 0, 0, 0]]), ALL_WRONG)
    assert found[0].tolist() == pytest.approx([2.552890, -0.688875, -0.688875, -0.688875], abs=1e-5)
    assert found[1].tolist() == pytest.approx([-0.121566] * 4, abs=1e-5)


def test_grpo_by_hand() -> None:
    found = advantage.grpo(double([[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]))
    third = 1 / math.sqrt(3)
    assert found[0].tolist() == pytest.approx([3 * third, -third, -third, -third])
    assert found[1:].abs().max() == 0


def plain_agapo(rewards: list[list[float]]) -> list[list[float]]:
    """AGAPO's advantages in plain Python."""
    raw = []
    for group in rewards:
        if not any(group):
            raw.append([ALL_WRONG] * len(group))
        else:
            others = [[r for j, r in enumerate(group) if j != i] for i in range(len(group))]
            raw.append([r - sum(rest) / len(rest) for r, rest in zip(group, others, strict=True)])
    flat = [value for group in raw for value in group]
    mean = sum(flat) / len(flat)
    spread = math.sqrt(sum((value - mean) ** 2 for value in flat) / len(flat))
    return [[(value - mean) / spread if spread > 1e-6 else 0.0 for value in group] for group in raw]


@given(rewards_of_groups)
def test_agapo_as_in_plain_python(rewards: list[list[float]]) -> None:
    found = advantage.agapo(double(rewards), ALL_WRONG).tolist()
    for mine, theirs in zip(found, plain_agapo(rewards), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-9)
    in_single = advantage.agapo(torch.tensor(rewards), ALL_WRONG).tolist()
    for mine, theirs in zip(in_single, found, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@given(rewards_of_groups)
def test_all_wrong_groups_push_away_and_right_answers_never(rewards: list[list[float]]) -> None:
    found = advantage.agapo(double(rewards), ALL_WRONG)
    if found.abs().max() == 0:
        return
    for group, values in zip(rewards, found.tolist(), strict=True):
        if not any(group):
            assert all(value < 0 for value in values)
        for reward, value in zip(group, values, strict=True):
            assert value >= -1e-9 or reward == 0


def example(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (3, 4, 5) of policy and reference, tokens, a ragged mask and advantages."""
    generator = torch.Generator().manual_seed(seed)
    logits, reference = (torch.randn(3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    tokens = torch.randint(5, (3, 4), generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.float64)
    return logits, reference, tokens, mask, torch.randn(3, generator=generator, dtype=torch.float64)


def plain_log_softmax(logits: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in logits))
    return [value - total for value in logits]


@pytest.mark.parametrize("seed", range(4))
def test_the_agapo_loss_as_in_plain_python(seed: int) -> None:
    logits, reference, tokens, mask, advantages = example(seed)
    expected = 0.0
    for b in range(3):
        places = [t for t in range(4) if mask[b, t]]
        own = {t: plain_log_softmax(logits[b, t].tolist()) for t in places}
        theirs = {t: plain_log_softmax(reference[b, t].tolist()) for t in places}
        kl = {t: sum(math.exp(p) * (p - q) for p, q in zip(own[t], theirs[t], strict=True)) for t in places}
        for t in places:
            drawn = own[t][int(tokens[b, t])]
            expected -= float(advantages[b]) * drawn
            expected += 0.01 * (kl[t] + drawn * sum(kl[later] for later in places if later > t))
    log_probs, reference_log_probs = logits.log_softmax(-1), reference.log_softmax(-1)
    found = loss.agapo(
        loss.drawn(log_probs, tokens),
        advantages,
        loss.token_divergence(log_probs, reference_log_probs),
        mask,
        kl_weight=0.01,
    )
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_grpo_loss_as_in_plain_python(seed: int) -> None:
    logits, reference, tokens, mask, advantages = example(seed)
    before = logits + 0.5 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed + 9))
    own, old, theirs = (loss.drawn(x.log_softmax(-1), tokens) for x in (logits, before, reference))
    expected = 0.0
    clipped = 0
    for b in range(3):
        places = [t for t in range(4) if mask[b, t]]
        for t in places:
            ratio, a = math.exp(own[b, t] - old[b, t]), float(advantages[b])
            bounded = min(max(ratio, 0.8), 1.2)
            clipped += bounded != ratio
            away = float(theirs[b, t] - own[b, t])
            gain = min(ratio * a, bounded * a) - 0.01 * (math.exp(away) - away - 1)
            expected -= gain / len(places)
    assert clipped  # or the test says nothing about clipping
    found = loss.grpo(own, old, theirs, advantages, mask, clip=0.2, kl_weight=0.01)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_the_divergence_of_sequences_has_its_exact_gradient() -> None:
    """Over all sequences of two tokens, the expected gradient of the estimate is the gradient of the exact KL."""
    generator = torch.Generator().manual_seed(3)
    size = 3
    first, second = (torch.randn(n, size, generator=generator, dtype=torch.float64) for n in (1, size))
    reference = [torch.randn(n, size, generator=generator, dtype=torch.float64).log_softmax(-1) for n in (1, size)]
    parameters = [first.requires_grad_(), second.requires_grad_()]

    def policy() -> list[torch.Tensor]:
        return [logits.log_softmax(-1) for logits in parameters]

    own = policy()
    pairs = list(product(range(size), repeat=2))
    exact = torch.stack(
        [
            (own[0][0, a] + own[1][a, b]).exp()
            * (own[0][0, a] + own[1][a, b] - reference[0][0, a] - reference[1][a, b])
            for a, b in pairs
        ]
    ).sum()
    expected = torch.autograd.grad(exact, parameters)

    own = policy()
    log_probs = torch.stack([torch.stack([own[0][0], own[1][a]]) for a, _ in pairs])  # (sequences, 2, V)
    theirs = torch.stack([torch.stack([reference[0][0], reference[1][a]]) for a, _ in pairs])
    drawn = loss.drawn(log_probs, torch.tensor(pairs))
    weights = drawn.sum(1).exp().detach()
    estimate = loss.sequence_divergence(loss.token_divergence(log_probs, theirs), drawn, torch.ones_like(drawn))
    found = torch.autograd.grad((weights * estimate).sum(), parameters)
    for mine, right in zip(found, expected, strict=True):
        assert torch.allclose(mine, right, atol=1e-12)


def bandit_step(logits: torch.Tensor, pay: torch.Tensor, rng: random.Random, method: str) -> torch.Tensor:
    """The loss of 16 groups of 8 pulls of one-token policies."""
    probabilities = logits.detach().softmax(-1).tolist()
    pulls = torch.tensor([[rng.choices(range(len(pay)), probabilities)[0] for _ in range(8)] for _ in range(16)])
    rewards = pay[pulls]
    log_probs = logits.log_softmax(-1)
    own = log_probs[pulls.flatten()][:, None]
    mask = torch.ones_like(own)
    if method == "agapo":
        values = advantage.agapo(rewards, ALL_WRONG).flatten()
        return loss.agapo(own, values, torch.zeros_like(own), mask, kl_weight=0.0) / len(own)
    values = advantage.grpo(rewards).flatten()
    return loss.grpo(own, own.detach(), own.detach(), values, mask, clip=0.2, kl_weight=0.0) / len(own)


@pytest.mark.parametrize("method", ["agapo", "grpo"])
def test_on_a_bandit_the_gradient_points_to_more_reward(method: str) -> None:
    pay = double([[0, 1, 0, 1, 0]])[0]
    logits = double([[1.0, 0.5, 0.0, -1.0, 0.3]])[0].requires_grad_()
    true = torch.autograd.grad((logits.softmax(-1) * pay).sum(), logits)[0]
    rng = random.Random(0)
    found = sum(
        (torch.autograd.grad(-bandit_step(logits, pay, rng, method), logits)[0] for _ in range(40)),
        torch.zeros_like(logits),
    )
    assert torch.cosine_similarity(found, true, dim=0) > 0.97
    for _ in range(60):
        (slope,) = torch.autograd.grad(bandit_step(logits, pay, rng, method), logits)
        logits = (logits - 0.5 * slope).detach().requires_grad_()
    assert float((logits.detach().softmax(-1) * pay).sum()) > 0.95

"""The attention kernel for training beside the exact one: any shape, window and threads; in a model under autocast."""

import math
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from model_impl.cpu.native import KernelsUnavailableError
from training import attention, native, recipe
from training import model as model_files

Tensors = tuple[torch.Tensor, ...]
SMOKE = recipe.load(Path("training/recipes/smoke.toml")).model
NAMES = ("out", "lse", "dq", "dk", "dv")


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    try:
        native.load()
    except KernelsUnavailableError as error:
        pytest.skip(str(error))


def inputs(rows: int, length: int, heads: int, kv_heads: int, size: int, *, gain: float = 1.0) -> Tensors:
    """q, k, v as slices of one matrix, and the gradient of what comes out."""
    torch.manual_seed(length + size)
    together = torch.randn(rows, length, heads + 2 * kv_heads, size)
    together[:, :, : heads + kv_heads] *= gain
    gradient = torch.randn(rows, length, heads, size).to(torch.bfloat16)
    return *together.to(torch.bfloat16).split([heads, kv_heads, kv_heads], 2), gradient


def exact(given: Tensors, scale: float, window: int, counts: torch.Tensor | None = None) -> Tensors:
    """In float64: output, logarithms of sums, and gradients."""
    *leaves, gradient = (one.double() for one in given)
    query, key, value = (one.requires_grad_() for one in leaves)
    groups = query.shape[2] // key.shape[2]
    scores = torch.einsum("bthc,bshc->bhts", query, key.repeat_interleave(groups, 2)) * scale
    if counts is not None:
        scores = scores + counts.double().log()[:, None, None]
    distance = torch.arange(query.shape[1])[:, None] - torch.arange(query.shape[1])
    seen = (distance >= 0) & (distance < (window or query.shape[1]))
    scores = scores.masked_fill(~seen, -math.inf)
    out = torch.einsum("bhts,bshc->bthc", scores.softmax(-1), value.repeat_interleave(groups, 2))
    return out.detach(), scores.logsumexp(-1).detach(), *torch.autograd.grad(out, (query, key, value), gradient)


def computed(given: Tensors, scale: float, window: int, counts: torch.Tensor | None = None) -> Tensors:
    query, key, value, gradient = given
    out, lse = attention.forward(query, key, value, scale, window, counts)
    return out, lse, *attention.backward(query, key, value, out, lse, gradient, scale, window, counts)


def assert_close(found: Tensors, expected: Tensors) -> None:
    """As near as rounding to bfloat16 leaves them: all together within 1 %, and no number far from its place."""
    for name, mine, theirs in zip(NAMES, found, expected, strict=False):  # of which a test may leave out the last
        error, size = mine.double() - theirs, theirs.square().mean().sqrt()
        assert error.square().mean().sqrt() <= 1e-2 * size + 1e-3, name
        assert (error.abs() <= 2**-7 * theirs.abs() + 0.1 * size + 1e-2).all(), name
        if name == "lse":
            assert (error.abs() <= 1e-5 * (1 + theirs.abs())).all()


@pytest.mark.parametrize("window", [0, 1, 5, 64, 128, 1000])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 100, 129, 321])
def test_any_length_and_window(length: int, window: int) -> None:
    given = inputs(2, length, 4, 2, 32)
    assert_close(computed(given, 32**-0.5, window), exact(given, 32**-0.5, window))


@pytest.mark.parametrize("size", [32, 64, 96, 128])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (3, 1), (4, 1), (6, 2), (8, 2)])
@pytest.mark.parametrize("window", [0, 40])
def test_any_heads(heads: int, kv_heads: int, size: int, window: int) -> None:
    given = inputs(3, 151, heads, kv_heads, size)
    assert_close(computed(given, 0.1, window), exact(given, 0.1, window))


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("length", [1, 17, 129, 321])
def test_keys_that_count_several_times(length: int, window: int) -> None:
    given = inputs(2, length, 4, 2, 32)
    counts = 16 ** torch.rand(2, length, generator=torch.Generator().manual_seed(length))
    found = computed(given, 0.2, window, counts)
    assert_close(found, exact(given, 0.2, window, counts))
    assert not torch.equal(found[1], computed(given, 0.2, window)[1])
    with pytest.raises(ValueError, match=r"counts are \(B, T\)"):
        attention.forward(given[0], given[1], given[2], 0.2, window, counts[:1])


def test_scores_far_apart() -> None:
    given = inputs(1, 300, 4, 2, 32, gain=8.0)  # most tokens look at a single one, some scores are beyond 300
    found, expected = computed(given, 1.0, 0), exact(given, 1.0, 0)
    assert_close(found[:2], expected[:2])
    assert all(one.isfinite().all() for one in found)


@pytest.mark.parametrize("window", [0, 128])
def test_the_same_bits_whatever_the_threads(window: int) -> None:
    given = inputs(3, 700, 4, 2, 32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            results.append(computed(given, 0.2, window))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0], other, strict=True))


def test_rows_do_not_depend_on_those_beside_them() -> None:
    given = inputs(3, 200, 4, 2, 32)
    together = computed(given, 0.2, 0)
    alone = computed(tuple(one[1:2] for one in given), 0.2, 0)
    assert all(torch.equal(mine, theirs[1:2]) for mine, theirs in zip(alone, together, strict=True))


def test_gradients_go_into_slices() -> None:
    query, key, value, gradient = inputs(2, 77, 4, 2, 32)
    out, lse, *expected = computed((query, key, value, gradient), 0.2, 0)
    room = torch.full((2, 77, 8, 32), 7.0, dtype=torch.bfloat16)
    dq, dk, dv = room.split([4, 2, 2], 2)
    made = attention.backward(query, key, value, out, lse, gradient, 0.2, 0, into=(dq, dk, dv))
    assert made[0] is dq
    assert torch.equal(room, torch.cat(expected, 2))


def test_gradients_do_not_go_where_they_do_not_fit() -> None:
    query, key, value, gradient = inputs(2, 7, 4, 2, 32)
    out, lse, dq, dk, dv = computed((query, key, value, gradient), 0.2, 0)
    with pytest.raises(ValueError, match="bfloat16 rows"):
        attention.backward(query, key, value, out, lse, gradient, 0.2, 0, into=(dq, dk, dv.float()))
    with pytest.raises(ValueError, match="bfloat16, not"):
        attention.forward(query.float(), key, value, 0.2, 0)


@pytest.mark.parametrize("length", [64, 200])
def test_a_model_under_autocast_learns_as_without_it(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = model_files.build_config(SMOKE, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    model = model_files.build(config, seed=3)
    model.set_attn_implementation(attention.NAME)
    ids = torch.randint(0, SMOKE.vocabulary_size, (2, length), generator=torch.Generator().manual_seed(length))
    forward = Mock(wraps=attention.forward)
    monkeypatch.setattr(attention, "forward", forward)
    found = []
    for autocast in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).mean()
        assert forward.call_count == (SMOKE.layers if autocast else 0)
        loss.backward()
        found.append([model.model.layers[0].self_attn.q_proj.weight.grad, model.model.embed_tokens.weight.grad])
    for exact_one, ours in zip(*found, strict=True):
        cosine = torch.nn.functional.cosine_similarity(exact_one.flatten(), ours.flatten(), dim=0)
        assert cosine > 0.995

"""The written-out pass against transformers' own: the loss, every gradient, and the same again bit for bit."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import Exaone4ForCausalLM

from training import fused_layer, native, recipe
from training import model as model_files
from training.batches import IGNORED, Batch
from training.trainer import forward_loss

SMOKE = recipe.load(Path("training/recipes/smoke.toml")).model  # a window of 64
TINY = recipe.load(Path("training/recipes/tiny.toml")).model  # a window of 128
HAS_MATRIX_UNIT = "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
pytestmark = pytest.mark.skipif(native.kernels() is None, reason="another CPU, or no compiler")

Gradients = dict[str, torch.Tensor]


def build(shape: recipe.ModelRecipe) -> Exaone4ForCausalLM:
    """With gains that differ, so that each one's place shows."""
    config = model_files.build_config(shape, eos_token_id=2, pad_token_id=0, bos_token_id=1)
    model = model_files.build(config, seed=3)
    model.train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def draw(shape: recipe.ModelRecipe, lengths: list[int]) -> Batch:
    """Rows of these lengths, padded to the longest; two thirds of their tokens are learnt."""
    generator = torch.Generator().manual_seed(sum(lengths))
    size = (len(lengths), max(lengths))
    ids = torch.randint(1, shape.vocabulary_size, size, generator=generator)
    labels = torch.randint(1, shape.vocabulary_size, size, generator=generator)
    labels[torch.rand(size, generator=generator) < 1 / 3] = IGNORED
    for row, length in enumerate(lengths):
        ids[row, length:], labels[row, length:] = 0, IGNORED
    return Batch("standard", ids, labels)


def step(model: Exaone4ForCausalLM, batch: Batch) -> tuple[float, Gradients]:
    model.zero_grad()
    loss, _ = forward_loss(model, batch)
    loss.backward()
    return loss.item(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def exact(model: Exaone4ForCausalLM, batch: Batch) -> tuple[float, Gradients]:
    """In float64, by transformers' own attention."""
    model = copy.deepcopy(model).double()
    model.set_attn_implementation("eager")
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
    learnt = batch.labels != IGNORED
    loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[learnt]), batch.labels[learnt])
    loss.backward()
    return loss.item(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that are called."""
    names: list[str] = []
    inner = fused_layer._call

    def call(name: str, *arguments: torch.Tensor | float | None) -> None:
        names.append(name)
        inner(name, *arguments)

    monkeypatch.setattr(fused_layer, "_call", call)
    return names


CASES = [(SMOKE, [1]), (SMOKE, [63, 5, 40]), (SMOKE, [201, 77]), (TINY, [150, 3, 129, 97])]


@pytest.mark.parametrize(("shape", "lengths"), CASES)
def test_loss_and_gradients_are_as_near_as_those_of_autocast(
    shape: recipe.ModelRecipe, lengths: list[int], monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    model, batch = build(shape), draw(shape, lengths)
    if lengths == [1]:
        batch.labels[0, 0] = 7
    loss, found = step(model, batch)
    assert "swiglu_backward" in calls
    expected_loss, expected = exact(model, batch)
    calls.clear()
    monkeypatch.setattr(fused_layer, "_is_for", lambda *_: False)
    other_loss, other = step(model, batch)
    assert not calls
    assert abs(loss - expected_loss) <= max(2 * abs(other_loss - expected_loss), 3e-3)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        if expected[name].norm() < 1e-9:  # of one token's attention nothing depends on queries and keys
            assert gradient.norm() < 1e-4, name
        else:
            assert error(gradient, expected[name]) <= 2 * error(other[name], expected[name]) + 1e-3, name


@pytest.mark.parametrize("lengths", [[63, 5, 40], [201, 77]])
def test_it_gives_the_same_bits_again_and_with_checkpoints(lengths: list[int]) -> None:
    model, batch = build(TINY), draw(TINY, lengths)
    first = step(model, batch)
    assert_same(step(model, batch), first)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same(step(model, batch), first)


@pytest.mark.skipif(HAS_MATRIX_UNIT, reason="PyTorch's own products differ with the threads where they use AMX")
@pytest.mark.parametrize("lengths", [[63, 5, 40], [201, 77]])
def test_it_gives_the_same_bits_with_more_threads(lengths: list[int]) -> None:
    model, batch = build(TINY), draw(TINY, lengths)
    first = step(model, batch)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    second = step(model, batch)
    torch.set_num_threads(threads)
    assert_same(second, first)


def assert_same(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> None:
    """Bit by bit."""
    assert found[0] == expected[0]
    assert all(torch.equal(gradient, expected[1][name]) for name, gradient in found[1].items())


def test_checkpoints_keep_a_layers_input_alone() -> None:
    model, batch = build(TINY), draw(TINY, [150, 97])

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept() -> int:
        """Bytes that wait for the backward pass, the weights left out."""
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss, _ = forward_loss(model, batch)
        del loss
        return sum(size for place, size in sizes.items() if place not in own)

    whole = kept()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert kept() < whole / 2
    model.eval()  # transformers makes none there
    assert kept() > whole / 2


def test_a_padded_row_gives_what_it_gives_alone() -> None:
    model = build(TINY)
    batch = draw(TINY, [150, 97])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mask = torch.zeros_like(batch.ids, dtype=torch.bool)
        mask[1, :97] = True
        together = fused_layer.hidden_states(model, batch.ids, mask)
        alone = fused_layer.hidden_states(model, batch.ids[1:, :97], mask[1:, :97])
    torch.testing.assert_close(together, alone, atol=2e-2, rtol=2e-2)


def test_without_autocast_or_with_another_attention_it_is_transformers_pass(calls: list[str]) -> None:
    model, batch = build(SMOKE), draw(SMOKE, [40])
    mask = batch.labels != IGNORED
    with torch.no_grad():
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        assert torch.equal(fused_layer.hidden_states(model, batch.ids, mask), hidden[mask])
        model.set_attn_implementation("eager")
        with torch.autocast("cpu", torch.bfloat16):
            fused_layer.hidden_states(model, batch.ids, mask)
    assert not calls

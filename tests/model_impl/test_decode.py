"""A native decode step beside the same step through vLLM's layers: hidden states, pages, windows, rows and threads."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from model_impl.cpu.native import KernelsUnavailableError, load
from tests.model_impl.config_fields import fields
from tests.model_impl.decode_rig import Rig, one_process, rig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    from model_impl.cpu import packed

WINDOW = 40
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.fixture(autouse=True, scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    try:
        load()
    except KernelsUnavailableError as error:
        pytest.skip(str(error))
    with one_process(tmp_path_factory.mktemp("process")):
        yield


def shape(**changes: Any) -> dict[str, Any]:
    layers = {"num_hidden_layers": len(LAYERS), "layer_types": LAYERS, "sliding_window": WINDOW}
    return fields(**(layers | changes))


@pytest.fixture(scope="module", params=["auto", "fp8"])
def usual(process: None, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rig(tmp_path_factory.mktemp("rig"), shape(), pages=request.param) as made:
        yield made


def numbers(pages: torch.Tensor) -> torch.Tensor:
    return pages.view(torch.float8_e4m3fn).float() if pages.dtype is torch.uint8 else pages


def assert_alike(made: Rig, rows: int) -> None:
    """Rounding apart: hidden states, and of the pages just what the step wrote.

    What is rounded otherwise in bfloat16 may have the next byte, which is 2^-3 of it away.
    """
    coarse = 4 if made.pages[next(iter(made.pages))].dtype is torch.uint8 else 1
    expected, pages_expected = made.decode(range(rows), native=False)
    hidden, pages = made.decode(range(rows), native=True)
    assert made.model.decode.took_last
    difference = (hidden.float() - expected.float()).abs()
    assert difference.mean() < coarse * 0.004 * expected.float().abs().mean()
    assert difference.max() < coarse * 0.06 * expected.float().abs().max()
    for name, store in pages.items():
        torch.testing.assert_close(numbers(store), numbers(pages_expected[name]), rtol=0.15, atol=0.06 + 0.04 * coarse)
    first = next(iter(pages))
    assert torch.equal(pages[first], pages_expected[first])  # in the lowest layer nothing has been rounded otherwise
    assert not torch.equal(pages[first], made.pages[first])


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 32, 128])
def test_as_through_the_layers(usual: Rig, rows: int) -> None:
    torch.manual_seed(rows)
    usual.prepare(torch.randint(1, 300, (rows,)).tolist())
    assert_alike(usual, rows)


def test_contexts_around_windows_pages_and_chunks(usual: Rig) -> None:
    torch.manual_seed(0)
    edges = [1, 2, 31, 32, 33, 39, 40, 41, 63, 64, 65, 71, 72, 73, 511, 512, 513, 544, 551, 552, 553, 1024, 1025, 1700]
    usual.prepare(edges)
    assert_alike(usual, len(edges))


@pytest.mark.parametrize("pages", ["auto", "fp8"])
@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 64, "num_attention_heads": 3, "num_key_value_heads": 3},
        {"head_dim": 128, "num_attention_heads": 5, "num_key_value_heads": 1},
        {"head_dim": 96, "num_attention_heads": 16, "num_key_value_heads": 2},
        {"head_dim": 32, "num_attention_heads": 7, "num_key_value_heads": 1, "page_tokens": 128},
        {"head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "page_tokens": 64, "groups": 1},
        {"layer_types": ["full_attention"] * 3, "sliding_window": None},
        {"layer_types": ["sliding_attention"] * 3, "sliding_window": 600, "groups": 3},
        {"hidden_size": 2048, "intermediate_size": 1024, "num_attention_heads": 4},
    ],
    ids=str,
)
def test_other_shapes(tmp_path: Path, changes: dict[str, Any], pages: str) -> None:
    torch.manual_seed(1)
    config = dict(changes)
    options = {name: config.pop(name) for name in ("page_tokens", "groups") if name in config}
    with rig(tmp_path, shape(**config), pages=pages, **options) as made:
        made.prepare([700, 1, 90, 1300, 33])
        assert_alike(made, 5)


def test_an_embedding_that_is_packed_for_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGE", 0)
    torch.manual_seed(4)
    with rig(tmp_path, shape(tie_word_embeddings=True)) as made:
        assert made.model.embed_tokens.weight.numel() == 0
        made.prepare([700, 1, 90])
        assert_alike(made, 3)


def test_a_row_has_the_same_bits_alone_and_in_any_batch_and_team(usual: Rig) -> None:
    torch.manual_seed(2)
    lengths = torch.randint(1, 900, (70,)).tolist()
    usual.prepare(lengths)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together, _ = usual.decode(range(70), native=True)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for rows in ([0], [69], [5, 3], range(0, 70, 7), range(69, -1, -1)):
                hidden, _ = usual.decode(rows, native=True)
                assert torch.equal(hidden, together[list(rows)])
    finally:
        torch.set_num_threads(before)


def test_a_row_of_padding_looks_nowhere_and_writes_nothing(usual: Rig) -> None:
    torch.manual_seed(3)
    usual.prepare([50, 60])
    alone, _ = usual.decode([0], native=True)
    usual.lengths[1] = 0
    metadata = usual._metadata

    def padded(rows: list[int]) -> Any:
        usual.lengths[1] = 1
        built, slots = metadata(rows)
        usual.lengths[1] = 0
        for name, slot in slots.items():
            slot[1] = -1
            built[name].seq_lens[1] = 0
        return built, slots

    usual._metadata = padded  # type: ignore[method-assign]
    try:
        hidden, pages = usual.decode([0, 1], native=True)
    finally:
        usual._metadata = metadata  # type: ignore[method-assign]
    assert torch.equal(hidden[:1], alone)
    changed = {name: (store != usual.pages[name]).flatten(1).any(1).sum() for name, store in pages.items()}
    assert all(count == 1 for count in changed.values()), changed

"""A real engine with weights in 8 and 4 bits: its answers beside bfloat16's, alone and in a batch; its next start."""

import math
import random
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_impl.cpu import native, quantized_cache
from model_impl.cpu.native import KernelsUnavailableError, quantized_kernels
from model_impl.weights import FORMATS, VARIABLE, Format
from server.settings import EMBEDDED_MODEL
from tests.model_impl.config_fields import fields
from tests.model_impl.engines import LLM, SamplingParams, engine, generate
from tests.model_impl.questions import prompts
from tests.model_impl.tiny import save_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    from model_impl.cpu.quantized import use_quantized_products

pytestmark = pytest.mark.engine
ITEMS, TOKENS = 8, 48


@pytest.fixture(autouse=True)
def kernels_of_their_own() -> Iterator[None]:
    """Which kernels a process has is settled once, and depends on the format."""
    try:
        quantized_kernels()
    except KernelsUnavailableError as error:
        pytest.skip(str(error))
    native.kernels.cache_clear()
    yield
    native.kernels.cache_clear()


def greedy(llm: LLM, asked: Sequence[list[int]]) -> list[list[int]]:
    params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    inputs: list[dict[str, list[int]]] = [{"prompt_token_ids": ids} for ids in asked]
    return [list(output.outputs[0].token_ids) for output in llm.generate(inputs, params, use_tqdm=False)]  # type: ignore[arg-type]


def agreement(answers: list[list[int]], others: list[list[int]]) -> float:
    """The share of tokens up to the first that differs, after which two answers are about different things."""
    return sum(
        next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), TOKENS)
        for one, other in zip(answers, others, strict=True)
    ) / (TOKENS * len(answers))


def test_answers_of_the_embedded_model_beside_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts(ITEMS)
    answers: dict[Format, list[list[int]]] = {}
    for weights in FORMATS:
        monkeypatch.setenv(VARIABLE, weights)
        native.kernels.cache_clear()
        with engine(EMBEDDED_MODEL, dtype="bfloat16") as llm:
            answers[weights] = greedy(llm, asked)
            if weights != "bf16":
                alone = [greedy(llm, [ids])[0] for ids in asked[:3]]
                assert alone == answers[weights][:3]  # batch-invariant, with the tokens that a batch shares
    measured = {weights: agreement(answers["bf16"], answers[weights]) for weights in FORMATS}
    assert measured["int8"] >= 0.8, measured
    assert measured["int4"] >= 0.4, measured


@pytest.mark.parametrize("tied", [True, False])
def test_the_next_start_takes_what_the_first_has_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, tied: bool
) -> None:
    kept = tmp_path / "kept" / "weights"
    monkeypatch.setenv(VARIABLE, "int4")
    monkeypatch.setattr(quantized_cache, "cache_folder", lambda: tmp_path / "kept" / "kernels")
    monkeypatch.setattr(quantized_cache, "SMALLEST", 1)
    folder = tmp_path / "model"
    save_checkpoint(folder, fields(tie_word_embeddings=tied), torch.bfloat16)
    rng = random.Random(0)
    ids = [rng.randrange(101) for _ in range(40)]

    def scores() -> torch.Tensor:
        with engine(folder, dtype="bfloat16") as llm:
            (scored,) = generate(llm, [ids], [1])
            return scored.logprobs[: len(ids) - 1]

    first = scores()
    (file,) = kept.iterdir()
    with monkeypatch.context() as context:  # now nothing can be quantized
        context.setattr("model_impl.cpu.quantized.QuantizedProduct.of", None)
        assert torch.equal(scores(), first)
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"{}" * 4000):
        file.write_bytes(damaged)
        assert quantized_cache.read(file) == {}
        assert not file.exists()
    file.write_bytes(b"twogear weights 0\n" + whole[len(quantized_cache._MAGIC) :])
    assert quantized_cache.read(file) == {}
    assert f"{file} cannot be used (it is of another version): quantizing anew" in caplog.text
    file.write_bytes(whole[:-9])
    assert torch.equal(scores(), first)
    assert "quantizing anew" in caplog.text
    assert file.read_bytes() == whole
    weights = load_file(folder / "model.safetensors")
    save_file({name: -weight for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    assert not torch.equal(scores(), first)
    assert len(list(kept.iterdir())) == 2


def test_another_format_or_rank_has_a_file_of_its_own(tmp_path: Path) -> None:
    assert quantized_cache.file_for(tmp_path, ("int8",)) is None
    save_file({"a": torch.zeros(math.prod((3, 4)))}, tmp_path / "model.safetensors")
    files = {quantized_cache.file_for(tmp_path, what) for what in (("int8", 0), ("int4", 0), ("int8", 1))}
    assert len(files) == 3


def test_a_file_without_room_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(quantized_cache, "SMALLEST", 1)
    monkeypatch.setattr("model_impl.cpu.quantized_cache.shutil.disk_usage", lambda _folder: type("", (), {"free": 10}))
    matrix = quantized_cache.Matrix(torch.zeros(100, dtype=torch.uint8), 10, 10)
    quantized_cache.keep(tmp_path / "some.bin", {"layer": matrix})
    assert list(tmp_path.iterdir()) == []
    assert "no room" in caplog.text


def test_a_write_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def cut_off(path: Path, _matrices: object) -> None:
        path.write_bytes(b"twogear")
        raise OSError("No space left on device")

    monkeypatch.setattr(quantized_cache, "SMALLEST", 1)
    monkeypatch.setattr(quantized_cache, "_write", cut_off)
    matrix = quantized_cache.Matrix(torch.zeros(100, dtype=torch.uint8), 10, 10)
    quantized_cache.keep(tmp_path / "some.bin", {"layer": matrix})
    assert list(tmp_path.iterdir()) == []
    assert "not kept for the next start: No space left on device" in caplog.text


def test_a_machine_without_kernels_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here() -> None:
        raise KernelsUnavailableError("ours need a compiler, and there is no g++")

    monkeypatch.setattr("model_impl.cpu.quantized.quantized_kernels", none_here)
    empty = torch.nn.Module()
    with pytest.raises(ValueError, match=r"^--weights int4 needs kernels .* there is no g\+\+$"):
        use_quantized_products(empty, empty, empty, "int4", None)

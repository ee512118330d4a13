"""GGUF files: the folder that stands for one means what the file says; what cannot be read is refused in one line."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from tokenizers import Tokenizer
from torch import nn

import model_impl.gguf
from engine.checkpoint import ModelError
from engine.weights import check_room
from model_impl.cpu.native import KernelsUnavailableError, quantized_kernels
from model_impl.gguf import INDEX, GgufError, is_gguf, stands_for_a_file
from model_impl.gguf.blocks import KEPT, KINDS, ROUNDED, Packable, packable
from model_impl.gguf.folder import folder_for, held_bytes, loading_bytes
from model_impl.private_names import PrivateName, missing
from tests.chat_templates.foreign import QWEN
from tests.chat_templates.small_tokenizers import sentencepiece
from tests.model_impl import gguf_files
from tests.model_impl.gguf_files import SPECIAL, TAGS, q4_k_m, write

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    from model_impl.gguf.loading import _PARTS, GgufMethod, packed_as_loaded, weights_of

TEXTS = [
    "Hello there, thinking in the 1234th hour!",
    "한국어 é\n\n  two",
    "<|im_start|>user\n<think>a</think><|im_end|>",
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def meant(kind: str, data: Any, outputs: int, inputs: int) -> Any:
    values, steps, least = packable(kind, data, outputs, inputs)
    if (least != 0).any():
        assert values.min() >= 0
        assert values.max() <= 15
    return (values.reshape(outputs, -1, 32) * steps[..., None] + least[..., None]).reshape(outputs, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_mean_what_the_package_makes_of_them(kind: str) -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 0.05, (5, 512)).astype(np.float32)
    data, exact = gguf_files._stored(weight, kind, rng)
    found = meant(kind, data.view(np.uint8), 5, 512)
    if kind in KEPT:
        assert np.array_equal(found, exact)
    else:
        largest = np.abs(exact.reshape(5, -1, 32)).max(axis=2, keepdims=True)
        assert (np.abs(found - exact).reshape(5, -1, 32) <= largest * 1.001 / 254).all()


def test_a_weight_that_is_no_number() -> None:
    for kind in (*KEPT, *ROUNDED):
        if kind in gguf_files._K_BLOCKS:
            continue
        weight = np.ones((1, 32), np.float32)
        data = quantize(weight, GGMLQuantizationType[kind])
        data[:, :2] = np.array([np.inf], np.float16).view(np.uint8)
        with pytest.raises(ValueError, match="infinite or not a number"):
            packable(kind, data, 1, 32)
    with pytest.raises(ValueError, match="rows of 48 weights"):
        packable("F32", np.zeros((1, 192), np.uint8), 1, 48)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("qwen2", {}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("exaone4", {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}),
        ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    ],
)
def test_a_folder_has_the_models_shape_and_weights(tmp_path: Path, architecture: str, config: dict[str, Any]) -> None:
    model = write(tmp_path / "model.gguf", architecture, "Q8_0", config)
    folder = folder_for(tmp_path / "model.gguf", packed=True)
    made = type(model.config).from_pretrained(folder)
    for name in (
        "architectures",
        "layer_types",
        "sliding_window",
        "rope_parameters",
        "tie_word_embeddings",
        "head_dim",
    ):
        if name == "architectures":
            assert made.architectures == [type(model).__name__]
        elif name != "head_dim" or architecture != "qwen2":
            assert getattr(made, name, None) == getattr(model.config, name, None), name
    for name in gguf_files.SIZES.keys() - {"initializer_range", "head_dim"}:
        assert getattr(made, name) == getattr(model.config, name), name
    found = dict(weights_of(folder, packed=False))
    state = model.state_dict()
    if config.get("tie_word_embeddings"):
        del state["lm_head.weight"]
    assert found.keys() == state.keys()
    for name, weight in state.items():
        assert torch.equal(found[name], weight.to(torch.bfloat16)), name
    assert is_gguf(str(tmp_path / "model.gguf"))
    assert stands_for_a_file(str(folder))


def test_a_tokenizer_and_template_as_the_file_has_them(tmp_path: Path) -> None:
    from tests.chat_templates.foreign import tokenizer_json

    write(tmp_path / "model.gguf", "qwen3", q4_k_m)
    folder = folder_for(tmp_path / "model.gguf", packed=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    ids = tokenizer.encode(TEXTS[2]).ids
    assert [i for i in ids if i < len(SPECIAL + TAGS)] == [1, 3, 4, 2]
    plain = Tokenizer.from_str(tokenizer_json(SPECIAL, TAGS))
    assert tokenizer.encode("Hello then").ids == plain.encode("Hello then").ids  # where both split alike
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == QWEN
    assert config["eos_token"] == "<|im_end|>"
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [0, 2]}


def test_pieces_with_scores_are_merged_as_sentencepiece_does(tmp_path: Path) -> None:
    theirs = sentencepiece()
    tokens = sorted(theirs.get_vocab(), key=lambda token: theirs.get_vocab()[token])

    def fields(writer: GGUFWriter) -> None:
        for name in list(writer.kv_data[0]):
            if name.startswith("tokenizer."):
                del writer.kv_data[0][name]
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([-float(i) for i in range(len(tokens))])
        writer.add_token_types([2 if i == 0 else 6 if token.startswith("<0x") else 1 for i, token in enumerate(tokens)])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(tokens.index("H"))

    write(tmp_path / "model.gguf", "llama", "Q8_0", {"vocab_size": len(tokens)}, fields)
    folder = folder_for(tmp_path / "model.gguf", packed=True)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = tokenizer.token_to_id("H")
    for text in ("Hello there,\n thinking in 한 国", "a  than\tan"):
        ids = tokenizer.encode(text).ids
        assert ids[0] == begin
        assert tokenizer.decode(ids[1:], skip_special_tokens=False) == text
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids[1:]
    assert tokenizer.encode(" an", add_special_tokens=False).tokens == ["▁", "▁a", "n"]  # by score, not by length


def test_llama_3s_rope_is_found_again(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = gguf_files.random_model("llama", {"rope_parameters": rope, "max_position_embeddings": 131072})
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    factors = (plain / ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))[0]).numpy()

    def fields(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))

    write(tmp_path / "one.gguf", "llama", "F16", {"rope_parameters": rope, "max_position_embeddings": 131072}, fields)
    folder = folder_for(tmp_path / "one.gguf", packed=True)
    found = json.loads((folder / "config.json").read_text())
    assert found["rope_parameters"] == pytest.approx(rope)
    assert "quantization_config" not in found
    factors = factors * np.linspace(1, 2, 32)
    write(tmp_path / "two.gguf", "llama", "F16", {}, fields)
    with pytest.raises(GgufError, match=r"not Llama 3's"):
        folder_for(tmp_path / "two.gguf", packed=True)


def test_a_folder_is_made_once_for_a_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, "qwen3", "Q4_0")
    folder = folder_for(path, packed=True)
    made = (folder / INDEX).stat().st_mtime_ns
    assert folder_for(path, packed=True) == folder
    assert (folder / INDEX).stat().st_mtime_ns == made
    assert json.loads((folder / "config.json").read_text())["quantization_config"] == {"quant_method": "twogear_gguf"}
    widened = folder_for(path, packed=False)
    assert "quantization_config" not in json.loads((widened / "config.json").read_text())
    write(path, "qwen3", "Q8_0")
    assert folder_for(path, packed=True) != folder
    assert [entry.name.partition("-")[0] for entry in folder.parent.iterdir()] == ["model"] * 3  # nothing half-written


def test_a_file_that_changes_under_a_start(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "qwen3", "Q4_0")
    folder = folder_for(tmp_path / "model.gguf", packed=True)
    write(tmp_path / "model.gguf", "qwen3", "Q8_0")
    with pytest.raises(ValueError, match="has changed"):
        next(weights_of(folder, packed=True))


def test_too_little_memory_for_a_file(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "qwen3", "Q4_0")
    folder = folder_for(tmp_path / "model.gguf", packed=True)
    reading, held = loading_bytes(folder), held_bytes(folder)
    sizes = [tensor.n_elements for tensor in GGUFReader(tmp_path / "model.gguf").tensors]
    assert held < reading <= held + 4 * max(sizes)
    check_room(folder, "model", "bf16", reading)
    told = (
        r"are free, too few for .*model\.gguf, which takes \d MiB until all of it is read and \d MiB afterwards; free"
    )
    with pytest.raises(ModelError, match=told) as why:
        check_room(folder, "model", "bf16", reading - 1)
    assert "\n" not in str(why.value)


def of_kind(name: str, kind: str) -> Any:
    return lambda theirs: kind if theirs == name else "Q8_0"


def refused(path: Path) -> str:
    with pytest.raises(GgufError) as caught:
        folder_for(path, packed=True)
    assert "\n" not in str(caught.value)
    made = Path(os.environ["XDG_CACHE_HOME"]) / "twogear" / "gguf"
    assert not made.exists() or not any(made.iterdir())  # nothing half-written
    return str(caught.value)


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "qwen3", of_kind("blk.1.ffn_up.weight", "Q3_K"))
    message = refused(tmp_path / "model.gguf")
    assert "blk.1.ffn_up.weight is of type Q3_K" in message
    assert "Q4_K_M" in message


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.01, 0.3, 0.9, 0.999999])
def test_a_file_that_is_cut_off(tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.gguf"
    write(path, "qwen3", "Q4_0")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "cut off" in refused(path)
    path.write_bytes(b"no" + whole[2:])
    assert "no GGUF file" in refused(path)


def test_models_that_are_not_read_are_named(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "mamba")
    writer.add_tensor("some", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "architecture mamba" in refused(tmp_path / "model.gguf")
    assert "llama, qwen2, qwen3, exaone4 are" in refused(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (lambda writer: writer.add_tokenizer_pre("another"), "splits text as 'another'"),
        (lambda writer: writer.add_tokenizer_model("rwkv"), "tokenizer of the kind rwkv"),
        (lambda writer: writer.add_feed_forward_length(320), "its fields say 320 x 256"),
        (lambda writer: writer.add_block_count(3), "has no tensor blk.2."),
        (lambda writer: writer.add_block_count(1), "has a tensor blk.1."),
        (lambda writer: writer.add_string("qwen3.block_count", "two"), "a strange qwen3.block_count"),
        (lambda writer: writer.add_rope_scaling_type(_LONG), "scales its rope as longrope"),
        (lambda writer: writer.add_uint16("split.count", 3), "one of 3 parts"),
        (lambda writer: writer.add_rope_dimension_count(32), "rotates a part of each head"),
    ],
)
def test_what_is_strange_in_a_file_is_named(tmp_path: Path, fields: Any, words: str) -> None:
    def written(writer: GGUFWriter) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "add_key_value", lambda *given: _replace(writer, *given))
            fields(writer)

    write(tmp_path / "model.gguf", "qwen3", "Q8_0", None, written)
    assert words in refused(tmp_path / "model.gguf")


def _replace(writer: GGUFWriter, key: str, value: Any, kind: Any, sub_type: Any = None) -> None:
    writer.kv_data[0].pop(key, None)
    GGUFWriter.add_key_value(writer, key, value, kind, sub_type)


class _Long:
    value = "longrope"


_LONG: Any = _Long()


def test_what_dequantizes_here_is_what_the_package_does() -> None:
    weight = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    data = quantize(weight, GGMLQuantizationType.Q8_0)
    assert np.array_equal(meant("Q8_0", data, 2, 32), dequantize(data, GGMLQuantizationType.Q8_0))


def test_a_later_start_does_without_what_reads_the_container(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "qwen3", "Q4_0")
    folder = folder_for(tmp_path / "model.gguf", packed=True)
    script = (
        "import sys; from pathlib import Path; from model_impl.gguf.folder import folder_for, held_bytes\n"
        "print(folder_for(Path(sys.argv[1]), packed=True)); print(held_bytes(Path(sys.argv[2])))\n"
        "assert 'gguf' not in sys.modules and 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model.gguf"), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert ran.stdout.split()[0] == str(folder)


def test_other_models_are_served_where_vllm_has_moved_what_the_loader_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing(model_impl.gguf.NEEDS) is None
    monkeypatch.setattr("model_impl.gguf.NEEDS", (PrivateName("vllm.nowhere:Nothing"),))
    monkeypatch.delitem(sys.modules, "model_impl.gguf.loading")
    model_impl.register()
    assert "model_impl.gguf.loading" not in sys.modules


def of_4_bits(outputs: int) -> Packable:
    rng = np.random.default_rng(outputs)
    values = rng.integers(0, 16, (outputs, 64)).astype(np.int8)
    steps, least = rng.uniform(0.005, 0.01, (2, outputs, 2)).astype(np.float32)
    return Packable(values, steps, -10 * least)


def of_8_bits(outputs: int) -> Packable:
    rng = np.random.default_rng(outputs)
    values = rng.integers(-127, 128, (outputs, 64)).astype(np.int8)
    return Packable(values, rng.uniform(0, 0.001, (outputs, 2)).astype(np.float32), np.zeros((outputs, 2), np.float32))


@pytest.mark.parametrize(
    ("parts", "bits"),
    [
        ([of_4_bits(32), of_4_bits(16)], 4),
        ([of_8_bits(32), of_8_bits(16)], 8),
        ([of_4_bits(32), of_4_bits(16), of_8_bits(16)], 8),
    ],
    ids=["4 bits", "8 bits", "both"],
)
def test_a_layer_means_what_its_parts_mean(parts: list[Packable], bits: int) -> None:
    try:
        kernels = quantized_kernels()
    except KernelsUnavailableError as error:
        pytest.skip(str(error))
    layer: Any = nn.Module()
    layer.gguf_outputs = [len(part.values) for part in parts]
    for name, arrays in zip(_PARTS, zip(*parts, strict=True), strict=True):
        layer.register_parameter(name, nn.Parameter(torch.from_numpy(np.concatenate(arrays)), requires_grad=False))
    method = GgufMethod()
    method.process_weights_after_loading(layer)
    outputs = sum(layer.gguf_outputs)
    assert layer.cpu_linear.packed.numel() == kernels.quantized_size(outputs, 64, bits)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 0
    weight = torch.cat(
        [torch.from_numpy(v.reshape(-1, 2, 32) * s[..., None] + least[..., None]).flatten(1) for v, s, least in parts]
    )
    found = method.embedding(layer, torch.arange(outputs)).float()
    assert torch.allclose(found, weight, rtol=2**-8, atol=0.2 / 254 + 0.2 * 2**-10)
    x, bias = torch.randn(3, 64).to(torch.bfloat16), torch.randn(outputs).to(torch.bfloat16)
    exact = x.float() @ weight.T + bias.float()
    assert float((method.apply(layer, x, bias).float() - exact).norm() / exact.norm()) < 0.02
    packed = layer.cpu_linear
    method.process_weights_after_loading(layer)  # again: nothing is left to do
    assert layer.cpu_linear is packed


def test_a_layer_is_packed_as_soon_as_all_of_it_is_there() -> None:
    try:
        quantized_kernels()
    except KernelsUnavailableError as error:
        pytest.skip(str(error))
    model: Any = nn.Module()
    model.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj"]}
    parts = {"qkv_proj": [of_4_bits(32), of_4_bits(16)], "o_proj": [of_8_bits(48)]}
    for name, own in parts.items():
        layer: Any = nn.Module()
        layer.gguf_outputs, layer.quant_method = [len(part.values) for part in own], GgufMethod()
        for part, arrays in zip(_PARTS, zip(*own, strict=True), strict=True):
            array = torch.from_numpy(np.concatenate(arrays))
            layer.register_parameter(part, nn.Parameter(array, requires_grad=False))
        model.add_module(name, layer)
    held = dict(model.named_parameters())  # as a loader of vLLM's has them
    names = [f"{layer}.{part}" for layer in ("k_proj", "q_proj", "o_proj", "norm") for part in _PARTS]
    packed = []
    for name, _ in packed_as_loaded(model, ((name, torch.empty(0)) for name in names)):
        packed.append((name, [hasattr(layer, "cpu_linear") for layer in model.children()]))
    assert dict(packed)["q_proj.weight_least"] == [False, False]
    assert dict(packed)["o_proj.weight"] == dict(packed)["o_proj.weight_least"] == [True, False]
    assert dict(packed)["norm.weight"] == [True, True]
    assert sum(parameter.numel() for parameter in held.values()) == 0

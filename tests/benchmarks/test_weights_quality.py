"""What fewer bits do to a model: the positions that are scored, and llama.cpp's own tool beside ours."""

import math
import sys
import warnings
from pathlib import Path
from unittest.mock import Mock

import gguf
import numpy as np
import pytest
import torch

from benchmarks.peers import llama_cpp, llama_cpp_divergence
from benchmarks.peers.llama_cpp_divergence import first_scored, measure
from server.cli_errors import UsageError
from tests.model_impl.config_fields import fields
from tests.model_impl.tiny import reference_logprobs, save_checkpoint

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM and torch deprecate of each other
    from benchmarks import weights_quality
    from benchmarks.weights_quality import CHOICES, MEASURED, Progress

TOOL = f'''#!{sys.executable}
"""Does what llama-perplexity does with these options; a token is a letter."""
import argparse, pathlib, struct, sys

parser = argparse.ArgumentParser()
for name in ("model", "threads", "override-kv", "ctx-size", "batch-size", "kl-divergence-base", "file", "chunks"):
    parser.add_argument("--" + name)
for name in ("kl-divergence", "no-repack"):
    parser.add_argument("--" + name, action="store_true")
args = parser.parse_args()
assert args.ctx_size == args.batch_size and "add_bos_token=bool:false" in args.override_kv
answers, window = pathlib.Path(args.kl_divergence_base), int(args.ctx_size)
if args.kl_divergence:
    assert answers.exists()
    print((pathlib.Path(__file__).parent / "said").read_text(), file=sys.stderr)
    sys.exit()
text = pathlib.Path(args.file).read_bytes()
if len(text) < 2 * window:
    answers.write_bytes(b"_logits_" + struct.pack("<i", window))
    print("E perplexity: you need at least", 2 * window, "tokens", file=sys.stderr)
    sys.exit()
chunks = min(int(args.chunks), len(text) // window)
tokens = struct.pack(f"<{{chunks * window}}i", *text[: chunks * window])
answers.write_bytes(b"_logits_" + struct.pack("<3i", window, 256, chunks) + tokens + b"answers")
print("0.00 minutes", "".join(f"[{{number}}]{{20 - number}}.5000," for number in range(1, chunks + 1)), sep="\\n")
'''
SAID = """0.00 minutes

chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence
   1      19.1010 ±    2.8824       0.79835 ±    0.32669       0.00123 ±    0.00004

====== Perplexity statistics ======
Mean PPL(Q)                   :  17.610761 ±   0.981251
Mean PPL(base)                :  17.598577 ±   0.632373
Mean ln(PPL(Q)/PPL(base))     :   0.322058 ±   0.115562

====== KL divergence statistics ======
Mean    KLD:   0.000512 ±   0.000031
Maximum KLD:   0.050000

====== Token probability statistics ======
Mean    Δp: -0.000 ± 0.000 %
RMS Δp    :  0.000 ± 0.000 %
Same top p: 98.765 ± 0.104 %
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a llama.cpp that is built, with files of a model in all its formats: what its tool says of a comparison."""
    (tmp_path / "llama-perplexity").write_text(TOOL)
    (tmp_path / "llama-perplexity").chmod(0o755)
    (tmp_path / "said").write_text(SAID)
    for kind in ("", "-Q8_0", "-Q4_K_M"):
        writer = gguf.GGUFWriter(tmp_path / f"model{kind}.gguf", "llama")
        blocks = np.zeros((256, 34 if kind else 64), np.uint8)
        kept = gguf.GGMLQuantizationType.Q8_0 if kind else gguf.GGMLQuantizationType.BF16
        writer.add_tensor("token_embd.weight", blocks, raw_dtype=kept)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    monkeypatch.setattr(llama_cpp, "build", lambda: tmp_path / "llama-server")
    monkeypatch.setattr(llama_cpp, "server_binary", lambda: tmp_path / "llama-server")
    monkeypatch.setattr(llama_cpp, "gguf", lambda _folder, _name: tmp_path / "model.gguf")
    monkeypatch.setattr(llama_cpp, "quantized_gguf", lambda _folder, _name, kind: tmp_path / f"model-{kind}.gguf")
    monkeypatch.setattr(llama_cpp_divergence, "cache_folder", lambda: tmp_path)
    return tmp_path / "said"


def test_llama_cpps_tool_compares_its_formats_with_its_bf16(said: Path, tmp_path: Path) -> None:
    found = measure(tmp_path, "0123456789" * 50, 100, 4)
    assert found.windows == [list(b"0123456789" * 10)] * 4  # as the tool has cut them
    figures = {"kl": 0.000512, "kl_error": 0.000031, "same_top": 0.98765, "perplexity": 17.610761}
    of_file = {"tokens": 4 * 49, "perplexity_bf16": 16.5, "bits_per_weight": 8.5}
    assert found.formats == dict.fromkeys(("Q8_0", "Q4_K_M"), figures | of_file)
    assert not list(tmp_path.glob("tmp*"))  # the answers take gigabytes


def test_what_cannot_be_compared_is_said(said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="the text has 3 windows of 100 tokens, and 4 are asked for"):
        measure(tmp_path, "0123456789" * 39, 100, 4)
    with pytest.raises(UsageError, match="scored nothing: E perplexity: you need at least 200 tokens"):
        measure(tmp_path, "too short", 100, 4)
    said.write_text("E kl_divergence: failed")
    with pytest.raises(UsageError, match="compared nothing: E kl_divergence: failed"):
        measure(tmp_path, "0123456789" * 50, 100, 4)
    (tmp_path / "llama-perplexity").write_text("#!/bin/sh\necho no such option; exit 1\n")
    with pytest.raises(UsageError, match=r"ended with 1 on model.gguf: no such option"):
        measure(tmp_path, "0123456789" * 50, 100, 4)
    (tmp_path / "llama-perplexity").write_text("#!/bin/sh\necho tiles; kill -ILL $$\n")
    with pytest.raises(UsageError, match=r"ended by signal 4 on model.gguf: tiles"):
        measure(tmp_path, "0123456789" * 50, 100, 4)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: type("", (), {"free": 10}))
    with pytest.raises(UsageError, match=r"0\.0 GB free; the model's answers take"):
        measure(tmp_path, "0123456789" * 50, 100, 4)


def test_the_second_half_of_each_window_is_scored(tmp_path: Path) -> None:
    config = fields(tie_word_embeddings=True, hidden_size=128, intermediate_size=256, vocab_size=128)
    model = save_checkpoint(tmp_path, config, torch.bfloat16)
    torch.manual_seed(0)
    windows = torch.randint(0, 101, (2, 21)).tolist()
    found = weights_quality.measure(tmp_path, CHOICES, windows, Progress(None, ""))
    eight, four, rounded, pages = (found[name] for name in CHOICES)
    assert rounded["kl"] / 2 < pages["kl"] < four["kl"]
    assert eight["tokens"] == 2 * (20 - first_scored(21)) == 20
    scored = torch.cat([reference_logprobs(model, window)[first_scored(21) :] for window in windows])
    assert math.log(eight["perplexity_bf16"]) == pytest.approx(-float(scored.mean()), abs=0.1)
    assert 0 < rounded["kl"] < eight["kl"] < four["kl"]
    assert rounded["perplexity"] == pytest.approx(eight["perplexity_bf16"])
    assert eight["bits_per_weight"] == pytest.approx(8.5, rel=0.01)
    assert 5 < four["bits_per_weight"] < 6  # with a head of 8 bits
    rows = weights_quality.table({"int8": eight, "int4": four}).splitlines()
    assert [row.split(" | ")[0] for row in rows] == ["| weights", "| ---", "| int8", "| int4"]


def test_a_measurement_goes_on_where_it_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, part = tmp_path / "model", tmp_path / "found.json.part"
    save_checkpoint(folder, fields(tie_word_embeddings=True, vocab_size=128), torch.bfloat16)
    torch.manual_seed(0)
    windows = torch.randint(0, 101, (3, 21)).tolist()
    whole = weights_quality.measure(folder, MEASURED, windows, Progress(None, ""))
    weights_quality.measure(folder, MEASURED, windows[:2], Progress(part, "this"))
    logprobs = Mock(side_effect=weights_quality._logprobs)
    monkeypatch.setattr(weights_quality, "_logprobs", logprobs)
    again = Progress(part, "this")
    assert again.windows == 2
    assert weights_quality.measure(folder, MEASURED, windows, again) == whole
    assert logprobs.call_count == 4  # each model one window
    with pytest.raises(UsageError, match="is of another measurement: remove it"):
        Progress(part, "other")
    again.end()
    assert not part.exists()

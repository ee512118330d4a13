"""Follows `docs/add-a-model.md`: the tests' own Qwen3, one folder and one line, draws what transformers' own draws."""

import json
import random
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.vllm_internals.attach import attach
from engine.vllm_internals.contract import DEMAND_ZERO, EXTENSION, MULTI_STEP, PAGE_COUNTS, SAMPLER, SEEDS
from model_impl import MODELS, Model, cpu, register
from model_impl.cpu.native import KernelsUnavailableError, load
from tests.model_impl.engines import SamplingParams, engine

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-model.md").read_text()
FOLDER = Path(__file__).parent / "qwen3"
FIELDS: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 101,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def test_the_folder_has_the_files_that_the_page_names() -> None:
    """As EXAONE 4.0's has."""
    table = PAGE.partition("| file |")[2].partition("\n\n")[0]
    named = set(re.findall(r"^\| `(\w+\.py)` \|", table, re.MULTILINE))
    for folder in (FOLDER, ROOT / "model_impl" / "exaone4"):
        assert {path.name for path in folder.glob("*.py")} == named


def line_of_the_page() -> dict[str, Model]:
    """The registry's line as the page prints it, for the folder where the tests have it."""
    (line,) = re.findall(r'^"Qwen3ForCausalLM": .*$', PAGE, re.MULTILINE)
    entry: dict[str, Model] = eval(f"{{{line}}}", {"Model": Model})  # our own page
    return {name: model._replace(package=f"tests.{model.package}") for name, model in entry.items()}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.model_executor.models import ModelRegistry
        from vllm.plugins import load_general_plugins

        # Once in a process: after the test its models are to be there still.
        load_general_plugins()  # type: ignore[no-untyped-call]
        monkeypatch.setattr(ModelRegistry, "models", dict(ModelRegistry.models))
        for name, model in line_of_the_page().items():
            monkeypatch.setitem(MODELS, name, model)
        register()


def save_checkpoint(folder: Path, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**FIELDS, initializer_range=0.3)
    model: Any = transformers.Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:  # ones by default, which would hide a norm that is not loaded
                weight.uniform_(0.5, 1.5)
    model.to(dtype).eval().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(FIELDS | {"dtype": str(dtype).removeprefix("torch.")}))
    return model


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    drawn = list(ids)
    with torch.no_grad():
        for _ in range(count):
            drawn.append(int(model(torch.tensor([drawn])).logits[0, -1].argmax()))
    return drawn[len(ids) :]


@pytest.mark.engine
@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_second_architecture_is_one_folder_and_one_line(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.loading import _import_model_class

    monkeypatch.setenv("TWOGEAR_MULTI_STEP_MS", "10000")
    reference = save_checkpoint(tmp_path, dtype)
    _import_model_class(str(tmp_path))  # as an engine process does
    rng = random.Random(0)
    prompts = [[rng.randrange(2, 101) for _ in range(length)] for length in (5, 33, 200)]
    ours: dict[str, Any] = {
        "worker_cls": "engine.vllm_internals.cpu_worker.TwogearCPUWorker",
        "scheduler_cls": "engine.vllm_internals.scheduler.MultiStepScheduler",
        "kv_cache_memory_bytes": 64 << 20,
    }
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, logprobs=0, detokenize=False)
    with engine(tmp_path, dtype=str(dtype).removeprefix("torch."), max_model_len=512, **ours) as llm:
        model = llm.llm_engine.model_executor.driver_worker.model_runner.model
        assert type(model).__module__ == "tests.model_impl.qwen3.model"
        inputs: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
        llm.generate(inputs, params, use_tqdm=False)
        paths = {status.name: status for status in attach(llm.llm_engine).fast_paths}
        outputs = llm.generate(inputs, params, use_tqdm=False)
    for path in (SAMPLER, SEEDS, MULTI_STEP, EXTENSION, PAGE_COUNTS, DEMAND_ZERO):
        assert paths[path.name].on, paths[path.name]
    assert not paths[cpu.DECODE.name].on
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = list(output.outputs[0].token_ids)
        if dtype is torch.float32:
            assert ids == greedy(reference, prompt, 40)
        else:
            assert_likeliest_but_for_rounding(reference, prompt, ids)
            assert [paths[path.name].on for path in (cpu.PACKED, cpu.PREFILL)] == [kernels_are_there()] * 2


def assert_likeliest_but_for_rounding(model: Any, prompt: list[int], ids: list[int]) -> None:
    """To transformers' model in float32, each token is nearly as likely as the likeliest."""
    with torch.no_grad():
        logits = model.float()(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    drawn = logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert float((logits.max(-1).values - drawn).max()) < 0.15 * float(logits.std())


def kernels_are_there() -> bool:
    try:
        load()
    except KernelsUnavailableError:
        return False
    return True

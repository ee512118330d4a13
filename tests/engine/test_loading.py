"""What vLLM cannot load is told in one line. In this process: nothing here gets as far as an engine."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint import ModelError
from engine.defaults import engine_defaults
from engine.messages import Sampling

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
WHAT_WORKS = "on a CPU, GPTQ in 4 and 8 bits and AWQ in 4 work"


def load(folder: Path, *options: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from engine.loading import load_engine

        load_engine(str(folder), options, engine_defaults(str(folder), options), lambda stage, fraction: None)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--no-such-option", "3"], "engine options: unrecognized arguments: --no-such-option 3"),
        (["--block-size", "many"], "engine options: argument --block-size"),
        (["--data-parallel-size", "2"], "for several, say --data-parallel-size before --"),
        (["--max-model-len", "10000000"], "could not be loaded: .*max_model_len"),
    ],
)
def test_options_that_cannot_be(checkpoint: Path, options: list[str], words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load(checkpoint, *options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda config: config.update(architectures=["NoSuchModel"]), "NoSuchModel.* not supported"),
        (lambda config: config.update(model_type="nothing"), "nothing"),
        (lambda config: config.pop("hidden_size"), "hidden_size"),
        (lambda config: config.update(num_attention_heads="four"), "num_attention_heads"),
        (lambda config: config.update(quantization_config=GPTQ | {"bits": 3}), rf"bits=3.*is gptq; {WHAT_WORKS}"),
        (lambda config: config.update(quantization_config={"quant_method": "exl9"}), rf"exl9.*is exl9; {WHAT_WORKS}"),
    ],
)
def test_configs_that_cannot_be(checkpoint: Path, edit: Callable[[dict[str, Any]], object], words: str) -> None:
    change(checkpoint, edit)
    with pytest.raises(ModelError, match=words) as caught:
        load(checkpoint)
    assert "\n" not in str(caught.value)


def test_sampling_fields_all_reach_vllm() -> None:
    """A field that is added to the message must be passed on, or it would be ignored in silence."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from vllm.sampling_params import SamplingParams

        from engine.conversion import sampling_params

    values: dict[str, Any] = {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.5, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.1,
        "frequency_penalty": 0.2, "repetition_penalty": 1.5, "seed": 3, "min_tokens": 4, "ignore_eos": True,
        "stop_token_ids": (7,), "logit_bias": {8: 0.5}, "logprobs": 3, "prompt_logprobs": 2, "grammar": 'start: "a"',
        "allowed_token_ids": (1, 8), "bad_words": ((4, 5),),
    }  # fmt: skip
    assert set(values) == set(Sampling.__struct_fields__)
    params = sampling_params(Sampling(**values), eos_token_ids=(2,))
    assert isinstance(params, SamplingParams)
    assert params.structured_outputs is not None
    assert params.structured_outputs.grammar == values.pop("grammar")
    assert params.bad_words_token_ids == [list(ids) for ids in values.pop("bad_words")]
    assert {name: getattr(params, name) for name in values} == values | {
        "stop_token_ids": [7], "allowed_token_ids": [1, 8],
    }  # fmt: skip


@pytest.mark.usefixtures("vllm_ignoring_warnings")
def test_kernels_that_are_compiled_before_ready_are_no_errors(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitor of vLLM's workers is on before our own requests: until all is warm it only tells."""
    from vllm.utils import jit_monitor

    from engine import loading

    class Engine:
        """As far as a worker's monitor goes."""

        def __init__(self, vllm_config: Any, **_options: Any) -> None:
            self.vllm_config = vllm_config
            monkeypatch.setattr(jit_monitor, "_mode", vllm_config.observability_config.jit_monitor_mode)

        def collective_rpc(self, method: Callable[[Any], None]) -> None:
            method(self)

    def compile_one(*_args: Any, **_options: Any) -> None:
        jit_monitor._handle_jit_event(backend="Triton", event="kernel JIT compilation", fn_name="kernel")

    monkeypatch.setattr(loading, "LLMEngine", Engine)
    monkeypatch.setattr(loading, "_warm_up", compile_one)
    monkeypatch.setattr(loading, "eos_token_ids", lambda _engine: ())
    monkeypatch.setattr("engine.warm_up.warm_up", compile_one)
    for mode in ("warn", "error"):
        options = ("--jit-monitor-mode", mode)
        defaults = engine_defaults(str(checkpoint), options)
        engine = loading.load_engine(str(checkpoint), options, defaults, lambda stage, fraction: None)
        assert engine.vllm_config.observability_config.jit_monitor_mode == mode
        internals: Any = None
        loading.warm(engine, internals, str(checkpoint))
        assert jit_monitor._mode == mode
    with pytest.raises(RuntimeError, match="during inference: kernel"):
        compile_one()

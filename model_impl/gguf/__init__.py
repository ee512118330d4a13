"""GGUF files as models: configuration, tokenizer and chat template out of the file, and its weights for our kernels.

`folder` makes of a file what the rest of the program serves: a small folder in transformers' format, whose weights stay
in the file. `loading` has vLLM read them from there. This module imports nothing heavy, so that anybody can
ask.
"""

from pathlib import Path

from model_impl.private_names import PrivateName

LOAD_FORMAT = "twogear_gguf"
"""vLLM's name for our loader."""
METHOD = "twogear_gguf"
"""vLLM's name for layers whose weights are in GGUF's blocks, in config.json's `quantization_config`."""
INDEX = "gguf.json"
"""Of a folder that stands for a file: which file, and where in it which weights lie."""
LINK = "model.gguf"
"""In the same folder, to the file."""


_LAYERS, _LOADERS = "vllm.model_executor.layers", "vllm.model_executor.model_loader"
NEEDS = (
    PrivateName(f"{_LAYERS}.linear:LinearBase"),
    PrivateName(f"{_LAYERS}.linear:LinearMethodBase"),
    PrivateName(f"{_LAYERS}.linear:register_weight_loader_v2_supported_method", parameters=("cls",)),
    PrivateName(f"{_LAYERS}.quantization:register_quantization_config", parameters=("quantization",)),
    PrivateName(f"{_LAYERS}.quantization.base_config:QuantizationConfig", ("get_quant_method",)),
    PrivateName(
        f"{_LAYERS}.quantization.base_config:QuantizeMethodBase.tie_weights",
        parameters=("self", "layer", "embed_tokens"),
    ),
    PrivateName(f"{_LAYERS}.vocab_parallel_embedding:VocabParallelEmbedding"),
    PrivateName(f"{_LOADERS}:register_model_loader", parameters=("load_format",)),
    PrivateName(f"{_LOADERS}.base_loader:BaseModelLoader", ("download_model", "load_weights")),
    PrivateName("vllm.model_executor.parameter:GroupQuantScaleParameter"),
    PrivateName("vllm.model_executor.parameter:ModelWeightParameter"),
)
"""What `loading` stands on; without it, other models are served all the same."""


class GgufError(ValueError):
    """The file cannot be served; the message is one line that says what could be."""


def is_gguf(model: str) -> bool:
    """Whether a model is named by a GGUF file that is there."""
    path = Path(model).expanduser()
    return path.suffix == ".gguf" and path.is_file()


def stands_for_a_file(model: str) -> bool:
    """Whether a model is a folder that `folder` has made."""
    return (Path(model).expanduser() / INDEX).is_file()

"""What runs inside vLLM's processes: model architectures, CPU kernels, sampling. Knows nothing of HTTP or modes.

Each architecture is a folder with the same files. `docs/add-a-model.md` says which.
"""

from importlib import import_module
from typing import NamedTuple

from model_impl import gguf
from model_impl.private_names import missing


class Model(NamedTuple):
    """An architecture's folder, as a package, and the names in it that are registered.

    `config_class` is in the folder's `config.py` and `model_class` in its `model.py`. `model_type` is the name in a
    checkpoint's config.json under which transformers looks the config class up.
    """

    package: str
    model_type: str
    config_class: str
    model_class: str


MODELS = {
    "Exaone4ForCausalLM": Model("model_impl.exaone4", "exaone4", "Exaone4Config", "TwogearExaone4ForCausalLM"),
}
"""By the name in a checkpoint's `architectures`, under which vLLM looks the model class up."""


def register() -> None:
    """Puts our config and model classes in the place of those that transformers and vLLM bring for the same names, and
    has vLLM know our loader of GGUF files.

    vLLM calls this in every one of its processes, possibly more than once (entry point `vllm.general_plugins`). A model
    class is named, not imported: vLLM imports it where a model is built.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - this package is imported where neither is installed
    from vllm import ModelRegistry  # noqa: PLC0415

    if missing(gguf.NEEDS) is None:
        import_module("model_impl.gguf.loading")
    for architecture, model in MODELS.items():
        config_class = getattr(import_module(f"{model.package}.config"), model.config_class)
        AutoConfig.register(model.model_type, config_class, exist_ok=True)
        ModelRegistry.register_model(architecture, f"{model.package}.model:{model.model_class}")

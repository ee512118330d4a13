"""What runs inside vLLM's processes: the architecture as a plugin; knows nothing of HTTP or modes."""

ARCHITECTURE_NAME = "Exaone4ForCausalLM"
"""The name in a checkpoint's `architectures`, under which vLLM looks the model class up."""


def register() -> None:
    """Puts our config and model class in the place of those that transformers and vLLM bring for EXAONE 4.0.

    vLLM calls this in every one of its processes, possibly more than once (entry point `vllm.general_plugins`). The
    model class is named, not imported: vLLM imports it where a model is built.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - this package is imported where neither is installed
    from vllm import ModelRegistry  # noqa: PLC0415

    from model_impl.exaone4.architecture import MODEL_TYPE  # noqa: PLC0415
    from model_impl.exaone4.config import Exaone4Config  # noqa: PLC0415

    AutoConfig.register(MODEL_TYPE, Exaone4Config, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE_NAME, "model_impl.exaone4.model:TwogearExaone4ForCausalLM")

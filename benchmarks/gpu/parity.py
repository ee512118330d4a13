"""Our engine on a GPU against transformers in float32: `python -m benchmarks.gpu.parity MODEL [-- ENGINE OPTIONS]`.

The log-probability of every token of some prompts and of what was drawn after them. The engine is loaded as
`twogear serve` loads it.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import result
from benchmarks.load.checkpoints import checkpoint
from engine.defaults import engine_defaults, use_environment

LENGTHS = {"embedded": (2, 127, 128, 129, 700, 3000), "large": (5, 1000, 4200, 6000)}
"""Tokens of the prompts: around a page, a window and a batch of each model."""
NEW = 80


def score(
    folder: Path, options: Sequence[str], lengths: Sequence[int]
) -> tuple[list[tuple[list[int], list[float]]], Any]:
    """Ids and log-probabilities of each text, and the engine's configuration."""
    defaults = engine_defaults(str(folder), options)
    use_environment(defaults)
    import torch  # noqa: PLC0415 - reads the environment, as vLLM does
    from vllm.inputs import tokens_input  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind, SamplingParams  # noqa: PLC0415

    from engine.loading import load_engine  # noqa: PLC0415

    began = time.monotonic()
    engine = load_engine(str(folder), options, defaults, lambda stage, _: print(f"... {stage}", flush=True))
    config = engine.vllm_config
    result("parity start", f"{time.monotonic() - began:.1f} s, {config.cache_config.num_gpu_blocks} pages")
    generator = torch.Generator().manual_seed(1)
    vocabulary = config.model_config.get_vocab_size()
    prompts = [torch.randint(20, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    sampling = SamplingParams(
        temperature=1.0,
        max_tokens=NEW,
        ignore_eos=True,
        logprobs=0,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), tokens_input(prompt), sampling)
    done: dict[int, Any] = {}
    while engine.has_unfinished_requests():
        done |= {int(one.request_id): one for one in engine.step() if one.finished}
    scored = []
    for number, prompt in enumerate(prompts):
        (output,) = done[number].outputs
        ids = [*prompt, *output.token_ids]
        entries = [*done[number].prompt_logprobs[1:], *output.logprobs]
        scored.append((ids, [entry[i].logprob for entry, i in zip(entries, ids[1:], strict=True)]))
    engine.engine_core.shutdown()
    return scored, config


def compare(folder: Path, scored: Sequence[tuple[list[int], list[float]]], config: Any) -> None:
    """Prints how far both the engine and transformers in the engine's type are from transformers in float32."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs = []
    with torch.no_grad():
        for dtype in (torch.float32, config.model_config.dtype):
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            reference = loaded.to(device).eval()
            rows = []
            for ids, _ in scored:
                logits = reference(torch.tensor([ids], device=device)).logits[0, :-1].float()
                rows.append(logits.log_softmax(-1).gather(1, torch.tensor(ids[1:], device=device)[:, None])[:, 0].cpu())
            theirs.append(torch.cat(rows))
            del loaded, reference
    ours = torch.cat([torch.tensor(row) for _, row in scored])
    exact, rounded = theirs
    for name, values in ((f"Twogear {config.model_config.dtype}", ours), ("transformers, same type", rounded)):
        gap = (values - exact).abs()
        figures = f"mean {gap.mean():.2e}, 99 % {gap.quantile(0.99):.2e}, largest {gap.max():.2e}"
        result(f"parity {folder.name} {name}", f"{figures}, of {len(gap)} tokens")


def main() -> None:
    """One engine fills a process: it ends with it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.parity")
    parser.add_argument("model", choices=LENGTHS)
    parser.add_argument("options", nargs="*", help="after --: vLLM's engine options")
    args = parser.parse_args()
    folder = checkpoint(args.model)
    compare(folder, *score(folder, args.options, LENGTHS[args.model]))
    sys.stdout.flush()
    os._exit(0)  # what is left of the engine need not end by itself


if __name__ == "__main__":
    main()

"""transformers' generate() in a loop, without a server: `python -m benchmarks.peers.transformers_loop`, a Job on stdin.

This is the best case for a server around it: all requests of a load are one batch with prompts of one length, without
HTTP or streams. Writes one result per load to stdout: seconds, output tokens, and the seconds of a batch of one token.
"""

import json
import os
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar


def main() -> None:
    """Loads the model and runs the loads, each after a short run that is not measured."""
    job = json.load(sys.stdin)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    disable_progress_bar()
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(job["checkpoint"], dtype=torch.bfloat16).eval()
    loaded = time.perf_counter() - started
    results = [_measure(model, load) for load in job["loads"]]
    json.dump({"load_seconds": loaded, "loads": results}, sys.stdout)


def _measure(model: Any, load: dict[str, Any]) -> dict[str, float]:
    """One load: `prompts` are token ids of equal length; `thinks` decides how the batch is sampled."""
    prompts = torch.tensor(load["prompts"])
    _generate(model, prompts, 2, thinks=load["thinks"])
    first = _generate(model, prompts, 1, thinks=load["thinks"])
    seconds = _generate(model, prompts, load["output_tokens"], thinks=load["thinks"])
    return {"first": first, "seconds": seconds, "tokens": len(prompts) * load["output_tokens"]}


def _generate(model: Any, prompts: torch.Tensor, tokens: int, *, thinks: bool) -> float:
    drawn = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 0} if thinks else {"do_sample": False}
    started = time.perf_counter()
    with torch.inference_mode():
        mask = torch.ones_like(prompts)
        model.generate(prompts, attention_mask=mask, min_new_tokens=tokens, max_new_tokens=tokens, **drawn)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

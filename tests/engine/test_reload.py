"""Other weights in a running engine: it draws from them, and what it had cached of the old ones is forgotten."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Exaone4ForCausalLM

from server.engine_client import RequestFailed
from server.process_engine_client import ProcessEngineClient
from tests.engine.conftest import MODEL, collect, prompt, request, token_ids

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]


def changed(checkpoint: Path) -> Exaone4ForCausalLM:
    """Gives the checkpoint other weights, and the model of them: every matrix, norm and embedding differs."""
    torch.manual_seed(0)
    weights = load_file(MODEL / "model.safetensors")
    for name, tensor in weights.items():
        noise = torch.randn_like(tensor, dtype=torch.float32) * tensor.float().std().clamp(min=0.05)
        weights[name] = (tensor.float() + 0.3 * noise).to(tensor.dtype)
    (checkpoint / "model.safetensors").unlink()
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    model: Exaone4ForCausalLM = Exaone4ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.eval()
    return model


async def test_a_running_engine_takes_other_weights(engine: ProcessEngineClient, checkpoint: Path) -> None:
    question = prompt(200)
    before = await token_ids(engine, request(question))
    model = changed(checkpoint)
    await engine.reload(checkpoint)
    try:
        (first, *_) = deltas = await collect(engine, request(question, logprobs=4))
        assert first.cached_tokens == 0
        drawn = [token_id for delta in deltas for token_id in delta.token_ids]
        assert drawn != before
        told = torch.tensor([entry.logprob for delta in deltas for entry in delta.logprobs or ()])
        with torch.no_grad():
            logits = model(torch.tensor([question + drawn])).logits[0, len(question) - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(len(drawn)), torch.tensor(drawn)]
        assert torch.allclose(told, expected, atol=0.1)  # the engine computes in bfloat16
    finally:
        await engine.reload(MODEL)
    assert await token_ids(engine, request(question)) == before


async def test_a_folder_without_weights_is_refused_and_the_old_ones_stay(
    engine: ProcessEngineClient, tmp_path: Path
) -> None:
    before = await token_ids(engine, request(prompt(40)))
    with pytest.raises(RequestFailed, match=r"no config\.json"):
        await engine.reload(tmp_path)
    assert await token_ids(engine, request(prompt(40))) == before


async def test_nothing_is_reloaded_under_a_running_request(engine: ProcessEngineClient) -> None:
    running = engine.generate(request(prompt(40), max_tokens=2000))
    await anext(running)
    with pytest.raises(RequestFailed, match="requests are running"):
        await engine.reload(MODEL)
    await running.aclose()

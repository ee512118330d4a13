"""The likeliest tokens and the drawn one's rank, without compiling anything.

vLLM compiles the count of likelier tokens when it is first asked for, in an eager engine too: that request and all
others then wait for torch's inductor and a C++ compiler. Knows nothing of vLLM.
"""

import numpy as np
import torch

BLOCK = 128


def ranks(logprobs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """How many of each row (rows, vocabulary) are at least as likely as its token (rows,): 1 for the likeliest."""
    values = logprobs.numpy()
    floors = logprobs.gather(1, tokens[:, None]).numpy()
    return torch.tensor([np.count_nonzero(row >= floor) for row, floor in zip(values, floors, strict=True)])


def largest(logprobs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `logprobs.topk(count)` does for (rows, vocabulary), but of a long row only the blocks that may hold them."""
    rows, vocabulary = logprobs.shape
    blocks = vocabulary // BLOCK
    if count == 0 or vocabulary % BLOCK or blocks <= count:
        values, ids = logprobs.topk(count)
        return values, ids
    chosen = logprobs.reshape(rows, blocks, BLOCK).amax(-1).topk(count).indices
    starts = torch.arange(0, rows * blocks, blocks)[:, None]
    pool = logprobs.reshape(-1, BLOCK).index_select(0, (chosen + starts).view(-1)).view(rows, -1)
    values, places = pool.topk(count)
    return values, chosen.gather(1, places // BLOCK) * BLOCK + places % BLOCK

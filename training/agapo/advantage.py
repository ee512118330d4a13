"""From rewards to advantages: AGAPO's and GRPO's. Tensors only; what a reward means is not known here.

Shapes: G groups (one prompt each), N answers in a group.
"""

import torch

_TINY = 1e-6


def leave_one_out(rewards: torch.Tensor) -> torch.Tensor:
    """`r_i - mean of the other rewards in its group`, (G, N) -> (G, N), N > 1. Sums to zero in every group."""
    size = rewards.shape[1]
    others = (rewards.sum(1, keepdim=True) - rewards) / (size - 1)
    return rewards - others


def agapo(rewards: torch.Tensor, all_wrong_reward: float) -> torch.Tensor:
    """Leave-one-out advantages normalised over the whole batch, (G, N) -> (G, N); rewards are 0 for wrong answers.

    Leave-one-out gives an all-wrong group zeros, whatever its rewards, so that it would teach nothing: its answers get
    `all_wrong_reward` (below zero) for their advantage before the normalisation. Normalised over the batch and not the
    group, a group that is mixed counts more than one that is nearly all right. Where all are alike, all are zero.
    """
    advantages = leave_one_out(rewards)
    all_wrong = (rewards == 0).all(1, keepdim=True)
    advantages = torch.where(all_wrong, torch.full_like(advantages, all_wrong_reward), advantages)
    spread = advantages.std(correction=0)
    if spread < _TINY:
        return torch.zeros_like(advantages)
    return (advantages - advantages.mean()) / spread


def grpo(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards normalised in their group (arXiv 2402.03300, section 4.1), (G, N) -> (G, N); zero in uniform ones."""
    centred = rewards - rewards.mean(1, keepdim=True)
    spread = rewards.std(1, correction=0, keepdim=True)
    return torch.where(spread < _TINY, torch.zeros_like(centred), centred / spread.clamp(min=_TINY))

"""The losses over generated sequences, summed so that parts of a batch add up: AGAPO's and GRPO's.

Shapes: B sequences, T token positions, V vocabulary. Log-probabilities are natural, of whole distributions (B, T, V)
or of the tokens that were drawn (B, T); `mask` (B, T) is 1 where a token was generated. What does not belong to the
sequences is multiplied away, so it must be finite.
"""

import torch


def drawn(log_probs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the tokens, (B, T, V) and (B, T) -> (B, T)."""
    return log_probs.gather(-1, tokens[..., None])[..., 0]


def token_divergence(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """KL from the reference of each next-token distribution, (B, T, V) twice -> (B, T), never below zero."""
    return (log_probs.exp() * (log_probs - reference)).sum(-1)


def sequence_divergence(divergence: torch.Tensor, own: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What to minimise for the sequences' KL, (B, T) each -> (B,).

    The KL of sequences is the expectation of the sum of the tokens' KL. Its gradient has two parts: each distribution
    moves towards the reference, and tokens become less likely as far as large divergences come after them. The second
    is written as a policy gradient over `own`, the tokens' log-probabilities; its value is not the KL, its gradient is.
    """
    masked = divergence * mask
    later = masked.detach().flip(1).cumsum(1).flip(1) - masked.detach()
    return (masked + own * mask * later).sum(1)


def agapo(
    own: torch.Tensor, advantages: torch.Tensor, divergence: torch.Tensor, mask: torch.Tensor, *, kl_weight: float
) -> torch.Tensor:
    """Policy gradient over whole sequences, unclipped, with the KL over the sequence; `advantages` is (B,)."""
    likelihood = (own * mask).sum(1)
    return (kl_weight * sequence_divergence(divergence, own, mask) - advantages * likelihood).sum()


def grpo(
    own: torch.Tensor,
    before: torch.Tensor,
    reference: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip: float,
    kl_weight: float,
) -> torch.Tensor:
    """Clipped token ratios, averaged over each sequence's tokens, with GRPO's per-token estimate of the KL.

    `before`: the tokens' log-probabilities when they were drawn, `reference`: under the SFT model, (B, T).
    """
    ratio = (own - before).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip)
    gain = torch.minimum(ratio * advantages[:, None], clipped * advantages[:, None])
    away = reference - own
    divergence = away.exp() - away - 1
    per_token = (kl_weight * divergence - gain) * mask
    return (per_token.sum(1) / mask.sum(1).clamp(min=1)).sum()

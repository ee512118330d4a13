"""One step of learning from drawn answers: sequences in batches of tokens, the method's loss, the optimizer.

Shapes: B sequences, T positions, M generated tokens among them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import Exaone4ForCausalLM

from training.agapo import advantage, loss
from training.fused_layer import hidden_states
from training.recipe import AgapoRecipe

_CLIP_NORM = 1.0


OPTIMIZER = "AdamW without weight decay, at a constant rate, gradients clipped"
"""Of every method."""


@dataclass(frozen=True)
class Sequenced:
    """A prompt and what follows it; `learnt` marks the tokens of `ids` that were generated. `index`: its batch row."""

    ids: list[int]
    learnt: list[bool]
    index: int


@dataclass(frozen=True)
class Rows:
    """Right-padded sequences: `inputs` and the `targets` after them (B, T), `mask` (B, T) of targets to learn."""

    inputs: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class Report:
    """What a step did: the loss and the KL from the start in nats, per sequence, and the gradient's norm."""

    loss: float
    divergence: float
    gradient: float


class Learner:
    """The policy, the frozen model it starts from, and the optimizer."""

    def __init__(self, policy: Exaone4ForCausalLM, reference: Exaone4ForCausalLM, recipe: AgapoRecipe) -> None:
        self.policy = policy
        self.optimizer = torch.optim.AdamW(policy.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
        self._reference = reference.eval().requires_grad_(False)
        self._recipe = recipe
        self._temperature = 1.0 if recipe.method == "sft" else recipe.temperature

    def learn(self, sequences: Sequence[Sequenced], rewards: torch.Tensor) -> Report:
        """From answers and their rewards (G, N), the groups' sequences one after the other.

        The sft method gets one sequence of each question and leaves the rewards alone.
        """
        values = self._advantages(rewards).flatten()
        parts = [list(sequences[number :: self._recipe.updates]) for number in range(self._recipe.updates)]
        before = self._before(sequences) if self._recipe.method == "grpo" and len(parts) > 1 else {}
        reports = [self._update(part, values, before) for part in parts]
        return Report(*(sum(column) / len(column) for column in zip(*reports, strict=True)))

    def _advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        if self._recipe.method == "agapo":
            return advantage.agapo(rewards, self._recipe.all_wrong_reward)
        return advantage.grpo(rewards)

    def _update(
        self, part: Sequence[Sequenced], advantages: torch.Tensor, before: dict[int, torch.Tensor]
    ) -> tuple[float, float, float]:
        """A step of the optimizer on the mean loss of the part; loss, divergence and gradient as in Report."""
        total = divergence = 0.0
        for rows in batches(part, self._recipe.batch_tokens, self.policy.device):
            loss_sum, divergence_sum = self._loss(rows, advantages.to(self.policy.device), before)
            (loss_sum / len(part)).backward()
            total += loss_sum.item()
            divergence += divergence_sum
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), _CLIP_NORM)
        if not torch.isfinite(norm):
            raise FloatingPointError("the gradient is no longer finite; lower learning_rate")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total / len(part), divergence / len(part), float(norm)

    def _loss(
        self, rows: Rows, advantages: torch.Tensor, before: dict[int, torch.Tensor]
    ) -> tuple[torch.Tensor, float]:
        """The loss and the divergence, both summed over the rows."""
        mask = rows.mask.float()
        targets = rows.targets[rows.mask]  # (M)
        log_probs = log_distributions(self.policy, rows, self._temperature)  # (M, V)
        with torch.no_grad():
            reference = log_distributions(self._reference, rows, self._temperature)
        own = spread(loss.drawn(log_probs, targets), rows.mask)
        divergence = spread(loss.token_divergence(log_probs, reference), rows.mask)
        summed = float(divergence.detach().sum())
        values = advantages[rows.indices] if self._recipe.method != "sft" else torch.empty(0)
        match self._recipe.method:
            case "agapo":
                return loss.agapo(own, values, divergence, mask, kl_weight=self._recipe.kl_weight), summed
            case "grpo":
                drawn_before = own.detach()
                if before:
                    tokens = torch.cat([before[int(index)] for index in rows.indices])
                    drawn_before = spread(tokens, rows.mask)
                theirs = spread(loss.drawn(reference, targets), rows.mask)
                recipe = self._recipe
                return loss.grpo(
                    own, drawn_before, theirs, values, mask, clip=recipe.clip, kl_weight=recipe.kl_weight
                ), summed
            case "sft":
                return -(own.sum(1) / mask.sum(1)).sum(), summed

    @torch.no_grad()
    def _before(self, sequences: Sequence[Sequenced]) -> dict[int, torch.Tensor]:
        """The generated tokens' log-probabilities under the policy as it is now, by the sequences' indices."""
        found: dict[int, torch.Tensor] = {}
        for rows in batches(sequences, self._recipe.batch_tokens, self.policy.device):
            own = loss.drawn(log_distributions(self.policy, rows, self._temperature), rows.targets[rows.mask])
            pieces = own.split(rows.mask.sum(1).tolist())
            found.update(zip(rows.indices.tolist(), pieces, strict=True))
        return found


def log_distributions(model: Exaone4ForCausalLM, rows: Rows, temperature: float) -> torch.Tensor:
    """Log-probabilities of the whole vocabulary at each generated token as they are drawn, (M, V)."""
    with torch.autocast(model.device.type, torch.bfloat16):
        logits: torch.Tensor = model.lm_head(hidden_states(model, rows.inputs, rows.mask))
    return (logits.float() / temperature).log_softmax(-1)


def spread(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Values of the generated tokens in their places, (M) -> (B, T), zero elsewhere."""
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values)


def batches(sequences: Sequence[Sequenced], batch_tokens: int, device: torch.device) -> Iterator[Rows]:
    """The sequences by length, in batches of at most `batch_tokens` positions (a longer sequence goes alone)."""
    group: list[Sequenced] = []
    for sequence in sorted(sequences, key=lambda one: len(one.ids)):
        if group and (len(group) + 1) * len(sequence.ids) > batch_tokens:
            yield _rows(group, device)
            group = []
        group.append(sequence)
    yield _rows(group, device)


def _rows(group: Sequence[Sequenced], device: torch.device) -> Rows:
    length = max(len(sequence.ids) for sequence in group) - 1
    inputs = torch.zeros(len(group), length, dtype=torch.int64)
    targets = torch.zeros_like(inputs)
    mask = torch.zeros_like(inputs, dtype=torch.bool)
    for row, sequence in enumerate(group):
        own = len(sequence.ids) - 1
        inputs[row, :own] = torch.tensor(sequence.ids[:-1])
        targets[row, :own] = torch.tensor(sequence.ids[1:])
        mask[row, :own] = torch.tensor(sequence.learnt[1:])
    indices = torch.tensor([sequence.index for sequence in group])
    return Rows(inputs.to(device), targets.to(device), mask.to(device), indices.to(device))

"""From the settings' objective to the loss of a micro-batch, and the figures that show whether training is sound.

Shapes: B pairs in the micro-batch. Log-probabilities are sums over a completion, in nats.
"""

from dataclasses import dataclass

import torch

from tokensqueeze.config import DPO, SFT, DPOLength, DPOLengthSFT, ObjectiveSettings, SimPO
from tokensqueeze.errors import TrainingError
from tokensqueeze.objectives.dpo import implicit_reward, preference_loss
from tokensqueeze.objectives.dpo_with_sft import dpo_with_sft
from tokensqueeze.objectives.length_margin import length_margin
from tokensqueeze.objectives.sft import sft_loss
from tokensqueeze.objectives.simpo import length_normalised_reward


@dataclass(frozen=True)
class CompletionScores:
    """One side of the pairs: what the policy and the frozen reference say about it, and its length in tokens."""

    logps_B: torch.Tensor
    ref_logps_B: torch.Tensor
    """NaN where the reference was not asked, which objectives that need none put up with."""
    num_tokens_B: torch.Tensor


@dataclass(frozen=True)
class PairLoss:
    """A micro-batch's share of its batch's means: adding up the micro-batches gives the batch's figure, every field.

    Only `loss` carries a gradient. What concerns the rejected side is None under plain SFT.
    """

    loss: torch.Tensor
    sft_loss: torch.Tensor
    chosen_logps: torch.Tensor
    ref_chosen_logps: torch.Tensor
    dpo_loss: torch.Tensor | None = None
    """The preference part: DPO's, DPO-L's or SimPO's."""
    rejected_logps: torch.Tensor | None = None
    ref_rejected_logps: torch.Tensor | None = None
    chosen_reward: torch.Tensor | None = None
    """β·log π/π_ref; under SimPO β times the mean log-probability per token."""
    rejected_reward: torch.Tensor | None = None
    margin: torch.Tensor | None = None
    """The chosen side's reward over the rejected one's."""
    preference_accuracy: torch.Tensor | None = None
    """Share of pairs whose margin is above 0."""


def needs_rejected(objective: ObjectiveSettings) -> bool:
    """Return whether the objective compares two sides."""
    return not isinstance(objective, SFT)


def needs_reference(objective: ObjectiveSettings) -> bool:
    """Return whether the objective measures the policy against the frozen reference."""
    return not isinstance(objective, SFT | SimPO)


def pair_loss(
    objective: ObjectiveSettings,
    *,
    chosen: CompletionScores,
    rejected: CompletionScores | None,
    batch_pairs: int,
    batch_chosen_tokens: int,
) -> PairLoss:
    """Return the loss of a micro-batch as its share of a batch of `batch_pairs` pairs and `batch_chosen_tokens` tokens.

    Raises `TrainingError` if the objective compares two sides and one is missing.
    """
    sft = sft_loss(chosen_logps_B=chosen.logps_B, batch_chosen_tokens=batch_chosen_tokens)
    chosen_logps = chosen.logps_B.detach().sum() / batch_pairs
    ref_chosen_logps = chosen.ref_logps_B.sum() / batch_pairs
    if isinstance(objective, SFT):
        return PairLoss(sft, sft.detach(), chosen_logps, ref_chosen_logps)
    if rejected is None:
        raise TrainingError(f"objective.name: {objective.name} compares two sides, but the pairs have no rejected one")

    chosen_reward_B, rejected_reward_B = _reward(objective, chosen), _reward(objective, rejected)
    preference_B = preference_loss(
        chosen_reward_B=chosen_reward_B,
        rejected_reward_B=rejected_reward_B,
        margin_B=_margin(objective, chosen, rejected),
    )
    preference = preference_B.sum() / batch_pairs
    match objective:
        case DPOLengthSFT():
            loss = dpo_with_sft(dpo=preference, sft=sft, dpo_weight=objective.dpo_weight)
        case DPO() | DPOLength() | SimPO():
            loss = preference
    margin_B = (chosen_reward_B - rejected_reward_B).detach()
    return PairLoss(
        loss=loss,
        sft_loss=sft.detach(),
        chosen_logps=chosen_logps,
        ref_chosen_logps=ref_chosen_logps,
        dpo_loss=preference.detach(),
        rejected_logps=rejected.logps_B.detach().sum() / batch_pairs,
        ref_rejected_logps=rejected.ref_logps_B.sum() / batch_pairs,
        chosen_reward=chosen_reward_B.detach().sum() / batch_pairs,
        rejected_reward=rejected_reward_B.detach().sum() / batch_pairs,
        margin=margin_B.sum() / batch_pairs,
        preference_accuracy=(margin_B > 0).double().sum() / batch_pairs,
    )


def _reward(objective: DPO | DPOLength | DPOLengthSFT | SimPO, side: CompletionScores) -> torch.Tensor:
    match objective:
        case SimPO():
            return length_normalised_reward(logps_B=side.logps_B, num_tokens_B=side.num_tokens_B, beta=objective.beta)
        case DPO() | DPOLength() | DPOLengthSFT():
            return implicit_reward(logps_B=side.logps_B, ref_logps_B=side.ref_logps_B, beta=objective.beta)


def _margin(
    objective: DPO | DPOLength | DPOLengthSFT | SimPO, chosen: CompletionScores, rejected: CompletionScores
) -> torch.Tensor | float:
    """Return by how much the chosen reward is to exceed the rejected one."""
    match objective:
        case DPO():
            return 0.0
        case SimPO():
            return objective.gamma
        case DPOLength() | DPOLengthSFT():
            return length_margin(
                chosen_num_tokens_B=chosen.num_tokens_B,
                rejected_num_tokens_B=rejected.num_tokens_B,
                length_weight=objective.length_weight,
                kind=objective.length_margin,
            )

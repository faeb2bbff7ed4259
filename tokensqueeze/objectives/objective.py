"""From the settings' objective to the loss of a micro-batch, and the figures that show whether training is sound.

Shapes: B pairs in the micro-batch. Log-probabilities are sums over a completion, in nats.
"""

from dataclasses import dataclass

import torch

from tokensqueeze.config import DPO, SFT, DPOLengthSFT, ObjectiveSettings
from tokensqueeze.errors import TrainingError
from tokensqueeze.objectives.dpo import dpo_loss, log_ratio
from tokensqueeze.objectives.dpo_with_sft import dpo_with_sft
from tokensqueeze.objectives.length_margin import length_margin
from tokensqueeze.objectives.sft import sft_loss


@dataclass(frozen=True)
class CompletionScores:
    """One side of the pairs: what the policy and the frozen reference say about it, and its length in tokens."""

    logps_B: torch.Tensor
    ref_logps_B: torch.Tensor
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
    rejected_logps: torch.Tensor | None = None
    ref_rejected_logps: torch.Tensor | None = None
    margin: torch.Tensor | None = None
    """β·log ratio: the implicit reward of the chosen side over the rejected one."""
    preference_accuracy: torch.Tensor | None = None
    """Share of pairs whose margin is above 0."""


def needs_rejected(objective: ObjectiveSettings) -> bool:
    """Return whether the objective compares two sides."""
    return not isinstance(objective, SFT)


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

    log_ratio_B = log_ratio(
        chosen_logps_B=chosen.logps_B,
        rejected_logps_B=rejected.logps_B,
        ref_chosen_logps_B=chosen.ref_logps_B,
        ref_rejected_logps_B=rejected.ref_logps_B,
    )
    dpo = dpo_loss(log_ratio_B=log_ratio_B, margin_B=_margin(objective, chosen, rejected), beta=objective.beta)
    dpo = dpo.sum() / batch_pairs
    match objective:
        case DPO():
            loss = dpo
        case DPOLengthSFT():
            loss = dpo_with_sft(dpo=dpo, sft=sft, dpo_weight=objective.dpo_weight)
    log_ratio_B = log_ratio_B.detach()
    return PairLoss(
        loss=loss,
        sft_loss=sft.detach(),
        chosen_logps=chosen_logps,
        ref_chosen_logps=ref_chosen_logps,
        dpo_loss=dpo.detach(),
        rejected_logps=rejected.logps_B.detach().sum() / batch_pairs,
        ref_rejected_logps=rejected.ref_logps_B.sum() / batch_pairs,
        margin=objective.beta * log_ratio_B.sum() / batch_pairs,
        preference_accuracy=(log_ratio_B > 0).double().sum() / batch_pairs,
    )


def _margin(objective: DPO | DPOLengthSFT, chosen: CompletionScores, rejected: CompletionScores) -> torch.Tensor:
    match objective:
        case DPO():
            return torch.zeros_like(chosen.ref_logps_B)
        case DPOLengthSFT():
            return length_margin(
                chosen_num_tokens_B=chosen.num_tokens_B,
                rejected_num_tokens_B=rejected.num_tokens_B,
                length_weight=objective.length_weight,
                kind=objective.length_margin,
            )

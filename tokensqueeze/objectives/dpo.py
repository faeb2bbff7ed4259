"""Direct preference optimisation with a target margin (Rafailov et al. 2023, eq. 7; TokenSqueeze section 3.3).

Shapes: B pairs. Log-probabilities are sums over a completion, in nats.
"""

import torch
import torch.nn.functional as F


def log_ratio(
    *,
    chosen_logps_B: torch.Tensor,
    rejected_logps_B: torch.Tensor,
    ref_chosen_logps_B: torch.Tensor,
    ref_rejected_logps_B: torch.Tensor,
) -> torch.Tensor:
    """Return log π(y_w)/π_ref(y_w) − log π(y_l)/π_ref(y_l): by how much the preference grew, in nats, shape B."""
    return (chosen_logps_B - ref_chosen_logps_B) - (rejected_logps_B - ref_rejected_logps_B)


def dpo_loss(*, log_ratio_B: torch.Tensor, margin_B: torch.Tensor, beta: float) -> torch.Tensor:
    """Return −log σ(β·log ratio − margin) of each pair, shape B: log 2 where policy is reference and margin 0."""
    return -F.logsigmoid(beta * log_ratio_B - margin_B)

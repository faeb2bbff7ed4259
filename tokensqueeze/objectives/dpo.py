"""Direct preference optimisation with a target margin (Rafailov et al. 2023, eq. 7; TokenSqueeze section 3.3).

Shapes: B pairs. Log-probabilities are sums over a completion, in nats.
"""

import torch
import torch.nn.functional as F


def implicit_reward(*, logps_B: torch.Tensor, ref_logps_B: torch.Tensor, beta: float) -> torch.Tensor:
    """Return β·log π(y)/π_ref(y), shape B: eq. 5 without the term of the prompt alone, which no comparison sees."""
    return beta * (logps_B - ref_logps_B)


def preference_loss(
    *, chosen_reward_B: torch.Tensor, rejected_reward_B: torch.Tensor, margin_B: torch.Tensor | float
) -> torch.Tensor:
    """Return −log σ(r(y_w) − r(y_l) − margin) of each pair, shape B: Bradley-Terry with a margin to be reached.

    With the implicit reward and no margin it is DPO's eq. 7: log 2 where policy is reference.
    """
    return -F.logsigmoid(chosen_reward_B - rejected_reward_B - margin_B)

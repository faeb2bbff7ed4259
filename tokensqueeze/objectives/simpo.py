"""SimPO (Meng et al. 2024, arXiv 2405.14734): the mean log-probability per token as reward, and no reference at all.

Its loss, eq. 6, is the preference loss of these rewards with a margin of γ; β = 2 and γ/β = 0.5 lie in the middle of
what the paper searched. Here for comparison: dividing by the length is its answer to long completions, DPO-L's the margin.

Shapes: B pairs. Log-probabilities are sums over a completion, in nats.
"""

import torch


def length_normalised_reward(*, logps_B: torch.Tensor, num_tokens_B: torch.Tensor, beta: float) -> torch.Tensor:
    """Return β/ℓ(y)·log π(y) (eq. 4), shape B; lengths in tokens."""
    return beta * logps_B / num_tokens_B

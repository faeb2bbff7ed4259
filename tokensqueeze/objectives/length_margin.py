"""The L of DPO-L: the longer the rejected completion against the chosen one, the larger the margin (section 3.3).

Derived from max_π E[r − λ·log ℓ] − β·KL with Bradley-Terry on r, the preference must reach λ·log(ℓ_l/ℓ_w): `target`.
Some notes on the paper print the term with the other sign, where length makes the loss easier instead: `bonus`.

Shapes: B pairs.
"""

from typing import Literal

import torch


def length_margin(
    *,
    chosen_num_tokens_B: torch.Tensor,
    rejected_num_tokens_B: torch.Tensor,
    length_weight: float,
    kind: Literal["target", "bonus"],
) -> torch.Tensor:
    """Return what is subtracted inside the sigmoid, ±λ·log(ℓ(y_l)/ℓ(y_w)), float64, shape B; lengths in tokens."""
    sign = {"target": 1.0, "bonus": -1.0}[kind]
    return sign * length_weight * torch.log(rejected_num_tokens_B.double() / chosen_num_tokens_B.double())

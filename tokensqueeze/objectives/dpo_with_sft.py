"""The paper's whole loss, L = η·L_DPO-L + (1 − η)·L_SFT (section 3.3): SFT keeps the chosen side likely in itself."""

import torch


def dpo_with_sft(*, dpo: torch.Tensor, sft: torch.Tensor, dpo_weight: float) -> torch.Tensor:
    """Return the weighted sum; `dpo_weight` is η."""
    return dpo_weight * dpo + (1 - dpo_weight) * sft

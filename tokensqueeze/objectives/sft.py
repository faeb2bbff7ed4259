"""Supervised fine-tuning on the chosen completions: token-mean negative log-likelihood, in nats per token.

Shapes: B pairs.
"""

import torch


def sft_loss(*, chosen_logps_B: torch.Tensor, batch_chosen_tokens: int) -> torch.Tensor:
    """Return −Σ log π(y_w) over the tokens of the whole batch, a scalar.

    The mean is over all chosen tokens of the optimiser step's batch, not over the rows given: micro-batches then add up
    to the batch's loss and gradient however it is split, and every token weighs the same.
    """
    return -chosen_logps_B.sum() / batch_chosen_tokens

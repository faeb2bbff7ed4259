"""Log-probabilities of many completions under the frozen reference, in batches of like length."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tokensqueeze.objectives.sequence_logps import completion_logps

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def reference_logps(
    model: "PreTrainedModel",
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    max_batch_tokens: int = 8192,
) -> list[float]:
    """Return log π_ref(completion | prompt) of each (prompt, completion), in nats."""
    order = sorted(range(len(sequences)), key=lambda index: -sum(map(len, sequences[index])))
    logps = [0.0] * len(sequences)
    while order:
        longest = sum(map(len, sequences[order[0]]))
        size = max(1, max_batch_tokens // max(1, longest))
        batch, order = order[:size], order[size:]
        token_ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, index in enumerate(batch):
            ids = [*sequences[index][0], *sequences[index][1]]
            token_ids_BT[row, : len(ids)] = torch.tensor(ids)
        logps_B = completion_logps(
            model,
            token_ids_BT=token_ids_BT.to(model.device),
            prompt_lengths_B=torch.tensor([len(sequences[index][0]) for index in batch], device=model.device),
            lengths_B=torch.tensor([sum(map(len, sequences[index])) for index in batch], device=model.device),
        )
        for index, value in zip(batch, logps_B.tolist(), strict=True):
            logps[index] = value
    return logps

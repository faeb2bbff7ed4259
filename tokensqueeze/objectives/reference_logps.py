"""Log-probabilities of many completions under the frozen reference, packed into passes of about the same size."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tokensqueeze.objectives.packing import pack
from tokensqueeze.objectives.sequence_logps import CompletionLogps

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
    scorer = CompletionLogps(model)
    logps: list[float] = []
    waiting = list(sequences)
    while waiting:
        size, tokens = 0, 0
        while size < len(waiting) and (size == 0 or tokens + sum(map(len, waiting[size])) <= max_batch_tokens):
            tokens += sum(map(len, waiting[size]))
            size += 1
        packed = pack([(prompt, [completion]) for prompt, completion in waiting[:size]], device=model.device)
        logps += scorer(packed).tolist()
        del waiting[:size]
    return logps

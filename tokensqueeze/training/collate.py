"""From pairs to tensors: the chosen sides and below them the rejected ones, in one batch of rows padded on the right.

Shapes: B pairs, R rows (B, or 2·B with rejected sides), T tokens of the longest row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tokensqueeze.training.pairs import EncodedPair

_PADDING = 0
"""Any id that exists: no real token attends to what stands to its right."""


@dataclass(frozen=True)
class PairTensors:
    token_ids_RT: torch.Tensor
    prompt_lengths_R: torch.Tensor
    lengths_R: torch.Tensor
    """Prompt and completion, padding not."""
    ref_logps_R: torch.Tensor
    """float64, in nats."""

    @property
    def num_tokens_R(self) -> torch.Tensor:
        """Tokens of the completion."""
        return self.lengths_R - self.prompt_lengths_R


def collate(pairs: Sequence[EncodedPair], *, device: torch.device) -> PairTensors:
    """Stack the pairs' sides; all pairs have a rejected side, or none has."""
    rows = [(pair.prompt_token_ids, pair.chosen) for pair in pairs]
    rows += [(pair.prompt_token_ids, pair.rejected) for pair in pairs if pair.rejected is not None]
    texts = [np.concatenate([prompt, side.token_ids]) for prompt, side in rows]
    token_ids_RT = np.full((len(rows), max(map(len, texts))), _PADDING, np.int64)
    for row, text in enumerate(texts):
        token_ids_RT[row, : len(text)] = text
    return PairTensors(
        token_ids_RT=torch.from_numpy(token_ids_RT).to(device),
        prompt_lengths_R=torch.tensor([len(prompt) for prompt, _ in rows], device=device),
        lengths_R=torch.tensor([len(text) for text in texts], device=device),
        ref_logps_R=torch.tensor([side.ref_logps for _, side in rows], dtype=torch.float64, device=device),
    )

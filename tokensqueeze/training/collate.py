"""From pairs to tensors: every pair's prompt once, its chosen and its rejected completion behind it, without padding.

Shapes: B pairs, S completions (B, or 2·B with rejected sides).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tokensqueeze.objectives.packing import Packed, pack
from tokensqueeze.training.pairs import EncodedPair


@dataclass(frozen=True)
class PairTensors:
    packed: Packed
    """A pair's sides stand next to each other, the chosen one first."""
    ref_logps_S: torch.Tensor
    """float64, in nats."""
    num_tokens_S: torch.Tensor
    """Tokens of the completion."""


def collate(pairs: Sequence[EncodedPair], *, device: torch.device) -> PairTensors:
    """Pack the pairs; all have a rejected side, or none has."""
    sides = [side for pair in pairs for side in pair.sides]
    return PairTensors(
        packed=pack([(pair.prompt_token_ids, [side.token_ids for side in pair.sides]) for pair in pairs], device=device),
        ref_logps_S=torch.tensor([side.ref_logps for side in sides], dtype=torch.float64, device=device),
        num_tokens_S=torch.tensor([len(side.token_ids) for side in sides], device=device),
    )

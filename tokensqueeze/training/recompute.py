"""Which layers keep their activations for the backward pass, and which compute them again.

Gradient checkpointing is all or nothing elsewhere; here a pass over few tokens keeps as many layers as fit a budget of
memory, and one over many keeps none. The last layers are kept: their activations go first in the backward pass, before the
others' are computed again.
"""

from typing import TYPE_CHECKING

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def kept_numbers_per_token(config: "PreTrainedConfig") -> int:
    """Estimate how many numbers a layer keeps of one token beyond its input: of a block with norms, rotary attention and a
    gated MLP, the inputs of every operation that its derivative needs."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    attention = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    # GPT-2 and its kin leave the MLP's width out: four times the model's.
    dense_size = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    experts = getattr(text, "num_experts_per_tok", None)
    expert_size = getattr(text, "moe_intermediate_size", None) or dense_size
    inner = experts * expert_size if experts else dense_size
    return 6 * text.hidden_size + 7 * attention + 4 * inner


class Recompute:
    """Says, pass by pass, which layers of a model in gradient checkpointing compute their activations again."""

    def __init__(self, model: "PreTrainedModel", *, budget_bytes: float):
        """`budget_bytes` may be filled with what a pass keeps of its layers beyond their inputs."""
        self._layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        self._bytes_per_token = kept_numbers_per_token(model.config) * torch.finfo(model.dtype).bits // 8
        self._budget_bytes = budget_bytes

    def prepare(self, num_tokens: int) -> int:
        """Set the layers up for a pass over so many tokens; return how many keep their activations."""
        kept = min(len(self._layers), int(self._budget_bytes // (num_tokens * self._bytes_per_token)))
        for number, layer in enumerate(self._layers):
            layer.gradient_checkpointing = number < len(self._layers) - kept
        return kept

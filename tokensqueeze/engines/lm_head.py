"""The LM head by itself, for code that runs it on few positions or in chunks."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tokensqueeze.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HALF = (torch.bfloat16, torch.float16)
_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def plain_lm_head(model: "PreTrainedModel") -> torch.nn.Linear:
    """Return the LM head. Raises `ModelError` for a model that does more to its logits than the head."""
    changes = [name for name in _LOGIT_CHANGES if getattr(model.config, name, None) not in (None, 1.0)]
    head = model.get_output_embeddings()
    if changes or head is None:
        raise ModelError(
            f"{model.config.model_type}: config.json sets {', '.join(changes) or 'no LM head'}; log-probabilities are taken "
            "straight from the LM head, so they would be wrong; choose a model without it"
        )
    return head  # type: ignore[return-value]


def full_logits(head: torch.nn.Linear, hidden_RD: torch.Tensor) -> torch.Tensor:
    """Return logits, [R, V], in float32 at least: rounded to bfloat16 they would hide small divergences."""
    if hidden_RD.dtype not in _HALF:
        return head(hidden_RD)
    return wide_logits(head.weight, head.bias, hidden_RD)


def wide_logits(weight_VD: torch.Tensor, bias_V: torch.Tensor | None, hidden_RD: torch.Tensor) -> torch.Tensor:
    """Return what `full_logits` does, for a head given by its weights.

    Half-precision weights stay as they are; their products are summed, and kept, in float32.
    """
    if hidden_RD.dtype not in _HALF:
        return F.linear(hidden_RD, weight_VD, bias_V)
    if hidden_RD.device.type == "cuda":
        logits_RV = torch.mm(hidden_RD, weight_VD.t(), out_dtype=torch.float32)
        return logits_RV if bias_V is None else logits_RV.add_(bias_V.float())
    return F.linear(hidden_RD.float(), weight_VD.float(), None if bias_V is None else bias_V.float())

"""The LM head by itself, for code that runs it on few positions or in chunks."""

from typing import TYPE_CHECKING

from tokensqueeze.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def plain_lm_head(model: "PreTrainedModel") -> "torch.nn.Linear":
    """Return the LM head. Raises `ModelError` for a model that does more to its logits than the head."""
    changes = [name for name in _LOGIT_CHANGES if getattr(model.config, name, None) not in (None, 1.0)]
    head = model.get_output_embeddings()
    if changes or head is None:
        raise ModelError(
            f"{model.config.model_type}: config.json sets {', '.join(changes) or 'no LM head'}; log-probabilities are taken "
            "straight from the LM head, so they would be wrong; choose a model without it"
        )
    return head  # type: ignore[return-value]

"""Log-probabilities of whole completions: log π(y | x), the quantity that DPO and SFT are written in.

Training and the scoring of the frozen reference both come here, so that at the first step policy and reference agree
to float rounding. Only completion tokens count. Rows are padded on the right: under causal attention no real token sees
the padding, so it needs no mask and changes nothing.

Shapes: B sequences, T tokens of the longest, N completion tokens in the batch, D hidden size, V vocabulary.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from tokensqueeze.engines.lm_head import plain_lm_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGITS_AT_ONCE = 2**26
"""Logits that exist at one time: 256 MiB in float32."""


def completion_logps(
    model: "PreTrainedModel",
    *,
    token_ids_BT: torch.Tensor,
    prompt_lengths_B: torch.Tensor,
    lengths_B: torch.Tensor,
    positions_at_once: int | None = None,
) -> torch.Tensor:
    """Return each row's log π(completion | prompt) in nats, float64, shape B.

    `lengths_B` counts prompt and completion, padding not. The LM head runs on `positions_at_once` completion positions
    at a time and is run again in the backward pass, so no N × V tensor need exist. Raises `ModelError` for a model that
    does more to its logits than the LM head.
    """
    decoder, head = model.base_model, plain_lm_head(model)
    hidden_BTD = decoder(input_ids=token_ids_BT, use_cache=False).last_hidden_state
    # Position t speaks about token t + 1.
    position_T = torch.arange(token_ids_BT.shape[1] - 1, device=token_ids_BT.device)
    scored_BT = (position_T >= prompt_lengths_B[:, None] - 1) & (position_T < lengths_B[:, None] - 1)
    hidden_ND, targets_N = hidden_BTD[:, :-1][scored_BT], token_ids_BT[:, 1:][scored_BT]
    row_N = scored_BT.nonzero()[:, 0]

    size = positions_at_once or max(1, _LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
    chunks = list(zip(hidden_ND.split(size), targets_N.split(size), strict=True))
    if len(chunks) > 1 and torch.is_grad_enabled():
        logprobs = [
            checkpoint(_token_logprobs, head, hidden, targets, use_reentrant=False, preserve_rng_state=False)
            for hidden, targets in chunks
        ]
    else:
        logprobs = [_token_logprobs(head, hidden, targets) for hidden, targets in chunks]
    # DPO looks at differences of sums of thousands of nats: float32 would leave them four digits.
    logps_B = torch.zeros(len(token_ids_BT), dtype=torch.float64, device=token_ids_BT.device)
    return logps_B.index_add(0, row_N, torch.cat(logprobs).double())


def _token_logprobs(head: torch.nn.Module, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    logits_NV = head(hidden_ND)
    # At least float32, whatever the weights are in.
    wide = torch.promote_types(logits_NV.dtype, torch.float32)
    return -F.cross_entropy(logits_NV.to(wide), targets_N, reduction="none")

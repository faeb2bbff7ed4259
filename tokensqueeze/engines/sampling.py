"""Draw each row's next token from its logits, with a random number of the row's own.

Shapes: B rows in the batch, S of them sampled rather than greedy, V vocabulary.
"""

from collections.abc import Sequence

import torch


def draw(
    logits_BV: torch.Tensor,
    sampled_S: Sequence[int] | torch.Tensor,
    *,
    temperature_S: torch.Tensor,
    top_p_S: torch.Tensor | None,
    uniform_S: torch.Tensor,
) -> torch.Tensor:
    """Return [B] tokens: the largest logit, or the inverse of the distribution function at the row's uniform.

    `top_p_S` is none where no row leaves anything out.
    """
    greedy_B = logits_BV.argmax(-1)
    if not len(sampled_S):
        return greedy_B
    probabilities_SV = torch.softmax(logits_BV[sampled_S] / temperature_S[:, None], dim=-1)
    if top_p_S is not None:
        probabilities_SV = _nucleus(probabilities_SV, top_p_S)
    cumulative_SV = probabilities_SV.cumsum(-1, dtype=torch.float64)
    threshold_S = uniform_S.to(cumulative_SV.device) * cumulative_SV[:, -1]
    drawn_S = torch.searchsorted(cumulative_SV, threshold_S[:, None], right=True)[:, 0]
    tokens_B = greedy_B.clone()
    tokens_B[sampled_S] = drawn_S.clamp(max=logits_BV.shape[-1] - 1)
    return tokens_B


def _nucleus(probabilities_SV: torch.Tensor, top_p_S: torch.Tensor) -> torch.Tensor:
    """Keep the fewest most probable tokens whose mass reaches top_p."""
    ordered_SV, order_SV = probabilities_SV.sort(dim=-1, descending=True, stable=True)
    before_SV = ordered_SV.cumsum(-1) - ordered_SV
    # The most probable token stays, even for a top_p that is 0 as a float32.
    ordered_SV = ordered_SV.masked_fill((before_SV >= top_p_S[:, None]) & (before_SV > 0), 0.0)
    return torch.zeros_like(probabilities_SV).scatter_(-1, order_SV, ordered_SV)

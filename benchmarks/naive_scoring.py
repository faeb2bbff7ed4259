"""Two ways to score candidates that share nothing: one whole forward pass a candidate, and all of a step's in one padded batch.

They measure what the package's scorer saves, and check what it says. Shapes: T window, V vocabulary, B candidates,
Q tokens of the longest candidate with its prefix and window, D hidden size.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tokensqueeze.traces.anatomy import Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.inference_mode()
def one_by_one(
    model: "PreTrainedModel", token_ids: Sequence[int], span: Span, candidates: Sequence[Sequence[int]], window_tokens: int
) -> list[float]:
    """Return each candidate's KL, summed over the window, in nats."""
    window = token_ids[span.end : span.end + window_tokens]
    if not window:
        return [0.0] * len(candidates)

    def predictions(before: Sequence[int]) -> torch.Tensor:
        ids = torch.tensor([[*before, *window[:-1]]], device=model.device)
        logits_TV = model(input_ids=ids, use_cache=False, logits_to_keep=len(window)).logits[0]
        return F.log_softmax(logits_TV.float(), dim=-1)

    log_p_TV = predictions(token_ids[: span.end])
    return [_kl(log_p_TV, predictions([*token_ids[: span.start], *candidate])) for candidate in candidates]


@torch.inference_mode()
def padded(
    model: "PreTrainedModel", token_ids: Sequence[int], span: Span, candidates: Sequence[Sequence[int]], window_tokens: int
) -> list[float]:
    """The same, from one forward pass over all candidates, padded on the right."""
    window = token_ids[span.end : span.end + window_tokens]
    if not window or not candidates:
        return [0.0] * len(candidates)
    rows = [
        [*before, *window[:-1]] for before in (token_ids[: span.end], *([*token_ids[: span.start], *c] for c in candidates))
    ]
    longest = max(map(len, rows))
    ids_BQ = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=model.device)
    hidden_BQD = model.base_model(input_ids=ids_BQ, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    assert head is not None

    def predictions(index: int) -> torch.Tensor:
        end = len(rows[index])
        return F.log_softmax(head(hidden_BQD[index, end - len(window) : end]).float(), dim=-1)

    log_p_TV = predictions(0)
    return [_kl(log_p_TV, predictions(index)) for index in range(1, len(rows))]


def _kl(log_p_TV: torch.Tensor, log_q_TV: torch.Tensor) -> float:
    return float((log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(-1).double().sum())

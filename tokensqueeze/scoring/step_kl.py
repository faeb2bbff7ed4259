"""KL of the model's predictions behind a rewritten step against those behind the original (paper section 3.2, appendix B).

    KL_i(s') = D_KL( P(· | prompt, s_≤i, t_<j) ‖ P(· | prompt, s_<i, s', t_<j) ),  reduced over j = 1 … T

The trace's own next T tokens t_1 … t_T are teacher-forced under both prefixes; at each position the divergence is taken
over the full vocabulary, in nats. One forward pass per trace gives the original's side and the prefix every candidate
starts from; the LM head runs in chunks, and one number per candidate leaves the device.

Shapes: B candidates, Q tokens of candidate and window, P of prefix, T of window, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from tokensqueeze.engines.attention_kinds import partial_attention
from tokensqueeze.engines.lm_head import plain_lm_head
from tokensqueeze.errors import ModelError
from tokensqueeze.traces.anatomy import Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEAD_ELEMENTS = 2**25
"""Logits held at once: 128 MiB in float32."""


class StepKL:
    """Scores candidates for the steps of one trace."""

    def __init__(
        self,
        model: "PreTrainedModel",
        *,
        prompt_token_ids: Sequence[int],
        completion_token_ids: Sequence[int],
        window_tokens: int,
        reduction: Literal["mean", "sum"],
        max_batch_tokens: int = 8192,
    ):
        partial = partial_attention(model.config)
        if partial:
            raise ModelError(
                f"{model.config.model_type}: layers of type {', '.join(partial)} see a part of the context, and a step's KL is "
                'taken with all of it in sight, so it would be wrong; choose another model, or rewriter.name = "none"'
            )
        self._model, self._head = model, plain_lm_head(model)
        self._prompt_length = len(prompt_token_ids)
        self._token_ids = [*prompt_token_ids, *completion_token_ids]
        self._window_tokens, self._reduction, self._max_batch_tokens = window_tokens, reduction, max_batch_tokens
        self._cache = DynamicCache()
        with torch.inference_mode():
            ids = torch.tensor([self._token_ids], device=model.device)
            output = model.base_model(input_ids=ids, past_key_values=self._cache, use_cache=True)
        self._hidden_LD: torch.Tensor = output.last_hidden_state[0]

    @torch.inference_mode()
    def score(self, span: Span, candidates: Sequence[Sequence[int]]) -> list[float]:
        """Return each candidate's KL when it stands in for the completion's tokens `span`.

        0 where nothing follows the span.
        """
        start, end = self._prompt_length + span.start, self._prompt_length + span.end
        window = self._token_ids[end : end + self._window_tokens]
        if not window:
            return [0.0] * len(candidates)
        # The token before t_1 predicts t_1, so the original's predictions start one position early.
        original_TD = self._hidden_LD[end - 1 : end - 1 + len(window)]
        rows_per_batch = max(1, self._max_batch_tokens // (max(map(len, candidates), default=0) + len(window)))
        scores: list[float] = []
        for first in range(0, len(candidates), rows_per_batch):
            batch = candidates[first : first + rows_per_batch]
            scores += self._kl(original_TD, self._hidden_after(start, batch, window))
        return scores

    def _hidden_after(self, start: int, candidates: Sequence[Sequence[int]], window: Sequence[int]) -> torch.Tensor:
        """Return the hidden states that predict the window behind each candidate, [B, T, D]."""
        lengths = [len(candidate) for candidate in candidates]
        # The window's last token predicts nothing that is asked; padding on the right is never looked back at.
        longest = max(lengths) + len(window) - 1
        ids_BQ = torch.zeros(len(candidates), longest, dtype=torch.long)
        for row, candidate in enumerate(candidates):
            tokens = [*candidate, *window[:-1]]
            ids_BQ[row, : len(tokens)] = torch.tensor(tokens)
        device, dtype = self._model.device, self._model.dtype
        future = torch.ones(longest, start + longest, dtype=torch.bool, device=device).triu(start + 1)
        mask_11QP = torch.zeros(1, 1, longest, start + longest, dtype=dtype, device=device)
        mask_11QP.masked_fill_(future, torch.finfo(dtype).min)
        output = self._model.base_model(
            input_ids=ids_BQ.to(device),
            position_ids=torch.arange(start, start + longest, device=device)[None].expand(len(candidates), -1),
            attention_mask=mask_11QP.expand(len(candidates), -1, -1, -1),
            past_key_values=_SharedPrefix(self._cache, start),
            use_cache=True,
        )
        position_BT = torch.tensor(lengths, device=device)[:, None] - 1 + torch.arange(len(window), device=device)
        hidden_BQD = output.last_hidden_state
        return hidden_BQD.gather(1, position_BT[:, :, None].expand(-1, -1, hidden_BQD.shape[-1]))

    def _kl(self, original_TD: torch.Tensor, rewritten_BTD: torch.Tensor) -> list[float]:
        """Return the reduced KL of each row; the head runs on as many positions at once as fit."""
        count, length, _ = rewritten_BTD.shape
        total_B = torch.zeros(count, dtype=torch.float64, device=rewritten_BTD.device)
        positions = max(1, _HEAD_ELEMENTS // ((count + 1) * self._head.weight.shape[0]))
        for first in range(0, length, positions):
            piece = slice(first, first + positions)
            log_p_TV = F.log_softmax(self._head(original_TD[piece]).float(), dim=-1)
            log_q_BTV = F.log_softmax(self._head(rewritten_BTD[:, piece]).float(), dim=-1)
            kl_BT = (log_p_TV.exp() * (log_p_TV - log_q_BTV)).sum(-1)
            total_B += kl_BT.double().sum(-1)
        reduced_B = total_B / length if self._reduction == "mean" else total_B
        return reduced_B.tolist()


class _SharedPrefix:
    """One sequence's cached keys and values, seen by every row of a batch in front of the row's own."""

    is_compileable = False

    def __init__(self, cache: DynamicCache, length: int):
        # One (keys, values) per layer, as its attention wrote them.
        self._layers = [(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in cache.layers]  # type: ignore[union-attr]
        self._length = length

    def update(
        self, keys_BHQD: torch.Tensor, values_BHQD: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        prefix_keys, prefix_values = self._layers[layer]
        rows = (keys_BHQD.shape[0], -1, -1, -1)
        return (
            torch.cat([prefix_keys.expand(rows), keys_BHQD], dim=2),
            torch.cat([prefix_values.expand(rows), values_BHQD], dim=2),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length

"""Log-probabilities of whole completions: log π(y | x), the quantity that DPO and SFT are written in.

Training and the scoring of the frozen reference both come here, so that at the first step policy and reference agree
to float rounding. Only completion tokens count, and no tensor of tokens × vocabulary exists.

Shapes: N packed tokens, S completions, C completion tokens in all, D hidden size, V vocabulary.
"""

from typing import TYPE_CHECKING, Any

import torch

from tokensqueeze.engines.lm_head import plain_lm_head, wide_logits
from tokensqueeze.objectives.packing import Packed, can_be_packed, hidden_states, packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGITS_AT_ONCE = 2**25
"""Logits that exist at one time: 128 MiB in float32."""


class CompletionLogps(torch.nn.Module):
    """A causal LM as training sees it: packed completions in, log π(y | x) of each out, in nats, float64, shape S.

    Models whose attention can't be packed read one completion at a time. Raises `ModelError` for a model that does more to
    its logits than the LM head.
    """

    def __init__(self, model: "PreTrainedModel", *, positions_at_once: int | None = None):
        super().__init__()
        self.model = model
        self.packs = can_be_packed(model)
        size = positions_at_once or max(1, _LOGITS_AT_ONCE // model.config.get_text_config().vocab_size)
        self.head = _ChunkedHead(plain_lm_head(model), size)

    def forward(self, packed: Packed) -> torch.Tensor:
        # Position t speaks about token t + 1: of a completion's first token the prompt's last position speaks.
        ranges = [range(completion.start, completion.stop) for _, completion in packed.sequences]
        device = packed.token_ids_N.device
        targets_C = packed.token_ids_N[torch.tensor([n for tokens in ranges for n in tokens], device=device)]
        if self.packs:
            before = [n for (prompt, own) in packed.sequences for n in (prompt.stop - 1, *range(own.start, own.stop - 1))]
            with packed_attention(self.model):
                hidden_CD = hidden_states(self.model, packed)[torch.tensor(before, device=device)]
        else:
            hidden_CD = torch.cat([self._read_alone(packed, number) for number in range(len(packed.sequences))])
        logprobs_C = self.head(hidden_CD, targets_C)
        # DPO looks at differences of sums of thousands of nats: float32 would leave them four digits.
        return torch.stack([own.double().sum() for own in logprobs_C.split([len(tokens) for tokens in ranges])])

    def _read_alone(self, packed: Packed, number: int) -> torch.Tensor:
        """Return the hidden states that speak about one completion's tokens."""
        prompt, completion = packed.sequences[number]
        ids_T = torch.cat([packed.token_ids_N[prompt.slice], packed.token_ids_N[completion.slice]])
        hidden_TD = self.model.base_model(input_ids=ids_T[None], use_cache=False).last_hidden_state[0]
        return hidden_TD[len(prompt) - 1 : -1]


def completion_logps(model: "PreTrainedModel", packed: Packed, *, positions_at_once: int | None = None) -> torch.Tensor:
    """Return log π(y | x) of each packed completion in nats, float64, shape S; see `CompletionLogps`."""
    return CompletionLogps(model, positions_at_once=positions_at_once)(packed)


class _ChunkedHead(torch.nn.Module):
    """The LM head, giving the targets' log-probabilities alone.

    A module with the head's weight as its own, because ZeRO-3 gathers a module's weights around its forward and its
    backward pass, once however many chunks there are.
    """

    def __init__(self, head: torch.nn.Linear, positions_at_once: int):
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self._positions_at_once = positions_at_once

    def forward(self, hidden_CD: torch.Tensor, targets_C: torch.Tensor) -> torch.Tensor:
        logprobs_C = _TargetLogprobs.apply(hidden_CD, self.weight, self.bias, targets_C, self._positions_at_once)
        assert isinstance(logprobs_C, torch.Tensor)
        return logprobs_C


class _TargetLogprobs(torch.autograd.Function):
    """log softmax(h·Wᵀ + b) at the targets, chunk by chunk of positions, and again in the backward pass.

    torch's `linear_cross_entropy` and Liger's kernels take the gradient in the forward pass, when DPO's weight of a
    completion is not known; they would keep a V × D gradient for each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_CD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_C: torch.Tensor,
        size: int,
    ) -> torch.Tensor:
        logprobs: list[torch.Tensor] = []
        logsumexps: list[torch.Tensor] = []
        for hidden, targets in zip(hidden_CD.split(size), targets_C.split(size), strict=True):
            logits = wide_logits(weight_VD, bias_V, hidden)
            of_target = logits.gather(-1, targets[:, None])[:, 0]
            # As `logsumexp`, but in place: the logits are the largest tensor there is.
            largest = logits.amax(-1)
            logsumexps.append(logits.sub_(largest[:, None]).exp_().sum(-1).log_().add_(largest))
            logprobs.append(of_target - logsumexps[-1])
        ctx.save_for_backward(hidden_CD, weight_VD, bias_V, targets_C, torch.cat(logsumexps))
        ctx.size = size
        return torch.cat(logprobs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient_C,) = gradients
        hidden_CD, weight_VD, bias_V, targets_C, logsumexp_C = ctx.saved_tensors
        hidden_gradient_CD = torch.empty_like(hidden_CD)
        # Added up in float32 at least: over many chunks bfloat16 would lose digits.
        wide = logsumexp_C.dtype
        weight_gradient_VD = torch.zeros_like(weight_VD, dtype=wide) if ctx.needs_input_grad[1] else None
        bias_gradient_V = torch.zeros_like(bias_V, dtype=wide) if bias_V is not None and ctx.needs_input_grad[2] else None
        for start in range(0, len(hidden_CD), ctx.size):
            rows = slice(start, start + ctx.size)
            hidden, gradient = hidden_CD[rows], gradient_C[rows, None]
            # d logprob / d logits = onehot(target) − softmax.
            change = wide_logits(weight_VD, bias_V, hidden).sub_(logsumexp_C[rows, None]).exp_().mul_(-gradient)
            change.scatter_add_(1, targets_C[rows, None], gradient)
            change = change.to(hidden.dtype)
            torch.mm(change, weight_VD, out=hidden_gradient_CD[rows])
            if weight_gradient_VD is not None and weight_VD.dtype == wide:
                weight_gradient_VD.addmm_(change.t(), hidden)
            elif weight_gradient_VD is not None:
                weight_gradient_VD += torch.mm(change.t(), hidden)
            if bias_gradient_V is not None:
                bias_gradient_V += change.sum(0)
        sums = [None if sum_ is None else sum_.to(weight_VD.dtype) for sum_ in (weight_gradient_VD, bias_gradient_V)]
        return hidden_gradient_CD, *sums, None, None

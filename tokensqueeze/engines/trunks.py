"""Prompts that begin one another, such as those of one trace's steps: read once, as the longest of them, their trunk.

Many rows may then attend to the one copy of a trunk's keys and values, and to their own tokens apart.

Shapes: B rows in the batch, N of them on one trunk, P trunk tokens, Q queries, S tokens of a slot, H key/value heads, R query
heads to each, D head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tokensqueeze.engines.attention_kinds import unserved_options
from tokensqueeze.errors import EngineError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = "tokensqueeze_trunks"


@dataclass(eq=False)
class Trunk:
    """A prompt that begins no other, read once for itself and all prompts that begin it."""

    token_ids: tuple[int, ...]
    layers: "list[KeysValues] | None" = None
    """What each layer keeps of all tokens but the last; None until they are read."""


@dataclass(frozen=True)
class KeysValues:
    keys_HPD: torch.Tensor
    values_HPD: torch.Tensor


def longest_extensions(prompts: set[tuple[int, ...]]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Map each prompt to one that it begins and that begins no other; where there are several, to the first in order."""
    extensions: dict[tuple[int, ...], tuple[int, ...]] = {}
    following: tuple[int, ...] = ()
    # Sorted, a prompt stands right before those that it begins.
    for prompt in sorted(prompts, reverse=True):
        extensions[prompt] = extensions[following] if following[: len(prompt)] == prompt else prompt
        following = prompt
    return extensions


def can_share_trunks(model: "PreTrainedModel") -> bool:
    return model.config._attn_implementation == "sdpa" and model._supports_attention_backend


@dataclass(frozen=True)
class TrunkUse:
    """Which rows of a batch stand on a trunk, and how much of it each one sees."""

    layers: Sequence[KeysValues]
    length: int
    """Tokens of the longest prefix among the rows."""
    rows_N: torch.Tensor
    mask_QP: torch.Tensor | None
    """Added to the scores of Q = N·R queries, row by row; None where all rows see all of `length`."""

    @classmethod
    def of(cls, trunk: Trunk, rows_N: torch.Tensor, prefixes_N: torch.Tensor, heads: int) -> "TrunkUse":
        assert trunk.layers
        keys_HPD = trunk.layers[0].keys_HPD
        length = int(prefixes_N.max())
        if int(prefixes_N.min()) == length:
            return cls(trunk.layers, length, rows_N, None)
        prefixes_Q = prefixes_N.repeat_interleave(heads // len(keys_HPD))
        hidden_QP = torch.arange(length, device=keys_HPD.device)[None] >= prefixes_Q[:, None]
        mask_QP = torch.zeros(hidden_QP.shape, dtype=keys_HPD.dtype, device=keys_HPD.device)
        return cls(trunk.layers, length, rows_N, mask_QP.masked_fill_(hidden_QP, torch.finfo(keys_HPD.dtype).min))


@contextmanager
def attention_to_trunks(model: "PreTrainedModel") -> Iterator[None]:
    """Have the model's attention layers take in trunks, which `trunk_uses` in a forward pass names."""
    AttentionInterface.register(_ATTENTION, _attend_with_trunks)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    before = model.config._attn_implementation
    assert before
    model.set_attn_implementation(_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend_with_trunks(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    trunk_uses: "Sequence[TrunkUse]",
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to the rows' own slots and to their trunks apart, and weigh the two by the softmax mass that each has seen.

    With scores x over a slot's positions O and a trunk's P:  softmax over O ∪ P = w·softmax over P + (1 − w)·softmax over O,
    w = σ( log Σ_P exp x − log Σ_O exp x ).
    """
    if not trunk_uses:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    unserved = unserved_options(more)
    if unserved:
        raise EngineError(
            f'an attention layer asks for {", ".join(unserved)}, which trunks can\'t be given; set engine.kind = "vllm"'
        )
    assert attention_mask is not None
    rows, heads, _, size = query.shape
    groups = key.shape[1]
    query_BHRD = query.view(rows, groups, heads // groups, size)
    mask_BHRS = attention_mask.expand(-1, groups, heads // groups, -1)
    own_BHRD, own_mass_BHR = attend(query_BHRD, key, value, mask_BHRS, scaling)
    trunk_BHRD = torch.zeros_like(own_BHRD)
    trunk_mass_BHR = torch.full_like(own_mass_BHR, -torch.inf)
    for use in trunk_uses:
        layer = use.layers[module.layer_idx]  # type: ignore[index]
        query_1HQD = query_BHRD[use.rows_N].transpose(0, 1).reshape(1, groups, -1, size)
        keys_1HPD, values_1HPD = layer.keys_HPD[None, :, : use.length], layer.values_HPD[None, :, : use.length]
        mask_1HQP = None if use.mask_QP is None else use.mask_QP.expand(1, groups, -1, -1)
        seen_1HQD, mass_1HQ = attend(query_1HQD, keys_1HPD, values_1HPD, mask_1HQP, scaling)
        by_row = (groups, len(use.rows_N), heads // groups)
        trunk_BHRD[use.rows_N] = seen_1HQD.reshape(*by_row, -1).transpose(0, 1)
        trunk_mass_BHR[use.rows_N] = mass_1HQ.reshape(by_row).transpose(0, 1)
    weight_BHR1 = torch.sigmoid(trunk_mass_BHR - own_mass_BHR)[..., None].to(own_BHRD.dtype)
    return torch.lerp(own_BHRD, trunk_BHRD, weight_BHR1).reshape(rows, 1, heads, -1), None


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attended values, [·, H, Q, D], and the logarithm of each query's softmax denominator, [·, H, Q]."""
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        # PyTorch's own CPU kernel; its public form keeps the denominators to itself.
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, attn_mask=mask, scale=scaling)
    return attend_plainly(query, key, value, mask, scaling)


def attend_plainly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    # Products of bfloat16 tensors would be rounded to bfloat16, too coarse for an exponential.
    scores = query.float() @ key.float().transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None:
        scores += mask
    mass = scores.logsumexp(-1)
    return (scores - mass[..., None]).exp_().to(value.dtype) @ value, mass

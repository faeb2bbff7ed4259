"""Prompts and their completions in one row without padding, each prompt once with all its completions behind it.

Whatever works on single tokens (nearly all of the arithmetic) sees one long row. Attention goes completion by completion:
each attends to its prompt and itself as if it stood alone, so nothing depends on what else is in the row.

Shapes: N packed tokens, S completions, C completion tokens, H query heads, K key/value heads, E head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from tokensqueeze.engines.attention_kinds import partial_attention, positions_depend_on_batch, unserved_options
from tokensqueeze.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from transformers import PreTrainedModel

_ATTENTION = "tokensqueeze_packed"


@dataclass(frozen=True)
class Span:
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True, eq=False)
class Packed:
    """A row, and for each of its S completions where its prompt and its own tokens stand."""

    token_ids_N: torch.Tensor
    position_ids_N: torch.Tensor
    sequences: list[tuple[Span, Span]]


def pack(groups: Sequence[tuple["ArrayLike", Sequence["ArrayLike"]]], *, device: torch.device | str = "cpu") -> Packed:
    """Pack (prompt, its completions) groups of token ids, none of them empty."""
    tokens: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    sequences: list[tuple[Span, Span]] = []
    end = 0

    def put(ids: "ArrayLike", first_position: int) -> Span:
        nonlocal end
        array = np.asarray(ids, np.int64)
        tokens.append(array)
        positions.append(np.arange(first_position, first_position + len(array)))
        end += len(array)
        return Span(end - len(array), end)

    for prompt_ids, completions in groups:
        prompt = put(prompt_ids, 0)
        sequences += [(prompt, put(completion_ids, len(prompt))) for completion_ids in completions]
    return Packed(
        torch.from_numpy(np.concatenate(tokens)).to(device), torch.from_numpy(np.concatenate(positions)).to(device), sequences
    )


def can_be_packed(model: "PreTrainedModel") -> bool:
    """Whether every layer attends to the whole context and lets its attention be given another form."""
    config = model.config
    return not partial_attention(config) and not positions_depend_on_batch(config) and model._supports_attention_backend


@contextmanager
def packed_attention(model: "PreTrainedModel") -> Iterator[None]:
    """Give the model's layers the attention of this file.

    A backward pass that recomputes activations must run inside as well.
    """
    AttentionInterface.register(_ATTENTION, _attend)
    usual = model.config._attn_implementation
    model.config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        model.config._attn_implementation = usual


def hidden_states(model: "PreTrainedModel", packed: Packed) -> torch.Tensor:
    """Return the last hidden state of every packed token, [N, D]. Runs inside `packed_attention`."""
    output = model.base_model(
        input_ids=packed.token_ids_N[None],
        position_ids=packed.position_ids_N[None],
        use_cache=False,
        # Through transformers' keyword arguments to every layer's attention, and to its recomputation.
        packed=packed,
    )
    return output.last_hidden_state[0]


def _attend(
    module: torch.nn.Module,
    query_1HNE: torch.Tensor,
    key_1KNE: torch.Tensor,
    value_1KNE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed: Packed | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend completion by completion; transformers' attention interface. Returns [1, N, H, E]."""
    if packed is None:
        raise ModelError(f"{type(module).__name__}: this model keeps its attention's arguments to itself; it can't be packed")
    if unserved := unserved_options(options):
        raise ModelError(f"{type(module).__name__}: attention with {', '.join(unserved)} can't be packed; choose another model")
    grouped = query_1HNE.shape[1] != key_1KNE.shape[1]
    native = grouped and query_1HNE.is_cuda
    if grouped and not native:
        # On CPUs the fused kernel is quicker on repeated heads.
        groups = query_1HNE.shape[1] // key_1KNE.shape[1]
        key_1KNE, value_1KNE = key_1KNE.repeat_interleave(groups, dim=1), value_1KNE.repeat_interleave(groups, dim=1)
    outputs: list[torch.Tensor] = []
    end = 0
    for prompt, completion in packed.sequences:
        first = completion.start == prompt.stop
        query, key, value = (_standing_alone(x, prompt, completion, first) for x in (query_1HNE, key_1KNE, value_1KNE))
        out_1HTE = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=native)
        outputs.append(out_1HTE if first else out_1HTE[:, :, len(prompt) :])
        end += outputs[-1].shape[2]
    assert end == query_1HNE.shape[2]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _standing_alone(x_1HNE: torch.Tensor, prompt: Span, completion: Span, first: bool) -> torch.Tensor:
    """Return prompt and completion next to each other; the prompt's own outputs are taken with its first completion."""
    if first:
        return x_1HNE[:, :, prompt.start : completion.stop]
    return torch.cat([x_1HNE[:, :, prompt.slice], x_1HNE[:, :, completion.slice]], dim=2)

"""Keys and values of the rows in flight: a slot each, of its own length, and the forward pass that reads a token for every row.

Shapes: B rows in the batch, S tokens of a slot, V vocabulary, H key/value heads, P tokens to copy, D head size.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tokensqueeze.engines.trunks import KeysValues

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GROWTH = 128
"""The cache grows by this many positions."""


class SlotCache:
    """Keys and values of B slots, each of its own length, as the models' attention layers ask for them (`update`).

    What an earlier row left beyond a row's length is finite and masked, so it counts for exactly nothing.
    """

    is_compileable = False

    def __init__(self, slots: int, device: torch.device):
        self.slots, self.device = slots, device
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def begin_step(self, lengths_B: torch.Tensor, seen: int) -> None:
        self.lengths_B, self.seen = lengths_B, seen
        self.slot_B = torch.arange(len(lengths_B), device=self.device)

    def update(
        self, keys_BH1D: torch.Tensor, values_BH1D: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._make_room(layer, keys_BH1D, values_BH1D, self.seen)
        self.keys[layer][self.slot_B, :, self.lengths_B] = keys_BH1D[:, :, 0]
        self.values[layer][self.slot_B, :, self.lengths_B] = values_BH1D[:, :, 0]
        count = len(self.lengths_B)
        return self.keys[layer][:count, :, : self.seen], self.values[layer][:count, :, : self.seen]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen - 1

    def fill(self, slots: slice, layers: Sequence[KeysValues], length: int) -> None:
        """Copy the beginning of what was read elsewhere into some slots."""
        for layer, read in enumerate(layers):
            self._make_room(layer, read.keys_HPD, read.values_HPD, length)
            self.keys[layer][slots, :, :length] = read.keys_HPD[:, :length]
            self.values[layer][slots, :, :length] = read.values_HPD[:, :length]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the beginning of one slot into another."""
        for tensor in (*self.keys, *self.values):
            tensor[target, :, :length] = tensor[source, :, :length]

    def _make_room(self, layer: int, keys: torch.Tensor, values: torch.Tensor, needed: int) -> None:
        for kept, new in ((self.keys, keys), (self.values, values)):
            if len(kept) == layer:
                kept.append(new.new_zeros(self.slots, new.shape[-3], 0, new.shape[-1]))
            held = kept[layer].shape[2]
            if needed > held:
                grown = max(needed, held + _GROWTH)
                kept[layer] = torch.nn.functional.pad(kept[layer], (0, 0, 0, grown - held))


def next_token_logits(
    model: "PreTrainedModel",
    cache: SlotCache,
    *,
    tokens_B: torch.Tensor,
    lengths_B: torch.Tensor,
    positions_B: torch.Tensor,
    **more: Any,
) -> torch.Tensor:
    """Read a token behind each slot's past, which is `lengths_B` long, and return the logits of the next, [B, V]."""
    count = len(tokens_B)
    seen = int(lengths_B.max()) + 1
    visible_BS = torch.arange(seen, device=lengths_B.device)[None] <= lengths_B[:, None]
    mask_B11S = torch.zeros(count, 1, 1, seen, dtype=model.dtype, device=lengths_B.device)
    mask_B11S.masked_fill_(~visible_BS[:, None, None], torch.finfo(model.dtype).min)
    cache.begin_step(lengths_B, seen)
    output = model(
        input_ids=tokens_B[:, None],
        position_ids=positions_B[:, None],
        attention_mask=mask_B11S,
        past_key_values=cache,
        use_cache=True,
        **more,
    )
    return output.logits[:, -1].float()

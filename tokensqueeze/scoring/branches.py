"""Read what may come after many prefixes of traces in one packed forward pass, each prefix from the one pass over its trace.

A *trace* is read once and its keys and values kept. A *branch* leaves it at some position and has tokens of its own, read in
one or several pieces. A forward pass takes pieces of any branches of any traces, one behind the other without padding: all
that works on single tokens (nearly all of the arithmetic) sees one long row, and attention goes branch by branch over the
trace's keys up to where the branch leaves and the branch's own, so nothing of a trace is computed or stored twice.

Shapes: N packed tokens, L tokens of a trace, P of a prefix, O of a branch's own, Q of a piece, H query heads, G query heads
per key/value head, K key/value heads, E head size, D hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, DynamicCache

from tokensqueeze.engines.attention_kinds import partial_attention, positions_depend_on_batch, unserved_options
from tokensqueeze.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ATTENTION = "tokensqueeze_branches"


@dataclass(frozen=True, eq=False)
class ReadTrace:
    """A trace after its one pass."""

    token_ids: list[int]
    keys_1KLE: list[torch.Tensor]
    """One tensor per layer."""
    values_1KLE: list[torch.Tensor]
    hidden_LD: torch.Tensor
    entropy_L: torch.Tensor | None = None
    """Of the predictions at each position, in nats, where it was asked for."""


@dataclass(eq=False)
class Branch:
    """Tokens that follow the first `start` tokens of a trace; what has been read of them can be read on."""

    trace: ReadTrace
    start: int
    token_ids: Sequence[int]
    num_read: int = 0
    keys_1KOE: list[torch.Tensor] = field(default_factory=list)
    values_1KOE: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Piece:
    """The next tokens of a branch to be read, up to its own token number `stop`."""

    branch: Branch
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class BranchReader:
    """A causal LM whose layers all attend to the whole context. Raises `ModelError` for another."""

    def __init__(self, model: "PreTrainedModel"):
        partial = partial_attention(model.config)
        if partial:
            raise ModelError(
                f"{model.config.model_type}: layers of type {', '.join(partial)} see a part of the context, and a step's KL is "
                'taken with all of it in sight, so it would be wrong; choose another model, or rewriter.name = "none"'
            )
        if positions_depend_on_batch(model.config):
            raise ModelError(
                f"{model.config.model_type}: its positions are encoded by what else is read with them (longrope), so branches "
                'would be scored wrongly; choose another model, or rewriter.name = "none"'
            )
        if not model._supports_attention_backend:
            raise ModelError(
                f"{model.config.model_type}: its attention can't be given another form, which scoring needs; choose another "
                'model, or rewriter.name = "none"'
            )
        self.model = model

    @torch.inference_mode()
    def read_trace(self, token_ids: Sequence[int]) -> ReadTrace:
        cache = DynamicCache()
        ids = torch.tensor([list(token_ids)], device=self.model.device)
        output = self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        layers: list[Any] = cache.layers
        return ReadTrace(
            list(token_ids), [layer.keys for layer in layers], [layer.values for layer in layers], output.last_hidden_state[0]
        )

    @torch.inference_mode()
    def read(self, pieces: Sequence[Piece]) -> "ReadPieces":
        """Read the pieces. The branches stay as they are until `ReadPieces.keep` says what is to be read on."""
        tokens = [token for piece in pieces for token in piece.branch.token_ids[piece.start : piece.stop]]
        positions = [p.branch.start + own for p in pieces for own in range(p.start, p.stop)]
        device = self.model.device
        packed = _Packed([_Segment.of(piece, self.model.dtype, device) for piece in pieces])
        with _branching(self.model, packed):
            output = self.model.base_model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
            )
        if len(packed.keys) != len(pieces[0].branch.trace.keys_1KLE):
            raise ModelError(f"{self.model.config.model_type}: some of its layers attend in a way that can't be scored")
        return ReadPieces(pieces, output.last_hidden_state[0], packed)


@dataclass(frozen=True, eq=False)
class ReadPieces:
    pieces: Sequence[Piece]
    hidden_ND: torch.Tensor
    """The pieces' hidden states, one piece behind the other."""
    _packed: "_Packed"

    def keep(self, piece: Piece) -> None:
        """Keep the piece's keys and values in its branch, which is to be read on."""
        branch, index = piece.branch, self.pieces.index(piece)
        first = sum(len(earlier) for earlier in self.pieces[:index])
        rows = slice(first, first + len(piece))
        for kept, packed in ((branch.keys_1KOE, self._packed.keys), (branch.values_1KOE, self._packed.values)):
            # Copies: a view would keep the whole pass in memory.
            new = [layer_1KNE[:, :, rows].clone() for layer_1KNE in packed]
            kept[:] = [torch.cat(pair, dim=2) for pair in zip(kept, new, strict=True)] if kept else new
        branch.num_read = piece.stop


@dataclass(frozen=True, eq=False)
class _Segment:
    """One branch's part of a pass, and what it may look at."""

    branch: Branch
    length: int
    mask_QS: torch.Tensor
    """Added to the scores of its Q tokens against prefix, own earlier tokens and themselves."""

    @classmethod
    def of(cls, piece: Piece, dtype: torch.dtype, device: torch.device) -> "_Segment":
        length, earlier = len(piece), piece.branch.start + piece.start
        later_QS = torch.ones(length, earlier + length, dtype=torch.bool, device=device).triu(earlier + 1)
        mask_QS = torch.zeros(later_QS.shape, dtype=dtype, device=device).masked_fill_(later_QS, float("-inf"))
        return cls(piece.branch, length, mask_QS)


@dataclass(eq=False)
class _Packed:
    """The segments of a pass, and each layer's keys and values of its tokens, as the layers leave them here."""

    segments: list[_Segment]
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)


_current: ContextVar[_Packed] = ContextVar("the pass that is being read")


@contextmanager
def _branching(model: "PreTrainedModel", packed: _Packed) -> Iterator[None]:
    """Give the model's layers the attention of this file, for one pass."""
    AttentionInterface.register(_ATTENTION, _branch_attention)
    usual = model.config._attn_implementation
    model.config._attn_implementation = _ATTENTION
    token = _current.set(packed)
    try:
        yield
    finally:
        _current.reset(token)
        model.config._attn_implementation = usual


def _branch_attention(
    module: torch.nn.Module,
    query_1HNE: torch.Tensor,
    key_1KNE: torch.Tensor,
    value_1KNE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend branch by branch; transformers' attention interface. Returns [1, N, H, E]."""
    if unserved := unserved_options(options):
        raise ModelError(f"{type(module).__name__}: attention with {', '.join(unserved)} can't be scored; choose another model")
    packed, layer = _current.get(), module.layer_idx
    assert isinstance(layer, int) and layer == len(packed.keys)
    packed.keys.append(key_1KNE)
    packed.values.append(value_1KNE)
    heads, groups = query_1HNE.shape[1], query_1HNE.shape[1] // key_1KNE.shape[1]
    attended = query_1HNE.new_empty(*query_1HNE.shape[:-1], value_1KNE.shape[-1])
    first = 0
    for segment in packed.segments:
        rows = slice(first, first + segment.length)
        first += segment.length
        branch = segment.branch
        key_1KSE = _all_keys(branch.trace.keys_1KLE, branch.start, branch.keys_1KOE, layer, key_1KNE[:, :, rows])
        value_1KSE = _all_keys(branch.trace.values_1KLE, branch.start, branch.values_1KOE, layer, value_1KNE[:, :, rows])
        # The heads that share keys become further queries of one head: no keys are repeated.
        query_1KQE = query_1HNE[:, :, rows].reshape(1, heads // groups, groups * segment.length, -1)
        mask_QS = segment.mask_QS.repeat(groups, 1) if groups > 1 else segment.mask_QS
        out_1KQE = F.scaled_dot_product_attention(
            query_1KQE, key_1KSE, value_1KSE, attn_mask=mask_QS[None, None], scale=scaling
        )
        attended[:, :, rows] = out_1KQE.reshape(1, heads, segment.length, -1)
    return attended.transpose(1, 2), None


def _all_keys(
    trace_1KLE: Sequence[torch.Tensor], start: int, own_1KOE: Sequence[torch.Tensor], layer: int, new_1KQE: torch.Tensor
) -> torch.Tensor:
    own = [own_1KOE[layer]] if own_1KOE else []
    return torch.cat([trace_1KLE[layer][:, :, :start], *own, new_1KQE], dim=2)

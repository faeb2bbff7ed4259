"""KL of the model's predictions behind a rewritten step against those behind the original (paper section 3.2, appendix B).

    KL(s') = Σ_j D_KL( P(· | prompt, s_≤i, t_<j) ‖ P(· | prompt, s_<i, s', t_<j) ),  j = 1 … T

The trace's own next T tokens t_1 … t_T are teacher-forced under both prefixes; at each position the divergence is taken over
the full vocabulary, in nats. Its terms are never negative, so a partial sum at the limit rejects for good: the window is
read in growing pieces, and only candidates still alive are read on. The LM head runs in chunks, and one number per
candidate leaves the device.

Shapes: N packed tokens, R positions asked for, U distinct positions of the trace, L tokens of a trace, D hidden size,
V vocabulary.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tokensqueeze.engines.lm_head import full_logits, plain_lm_head
from tokensqueeze.scoring.branches import Branch, BranchReader, Piece, ReadPieces, ReadTrace
from tokensqueeze.traces.anatomy import Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEAD_ELEMENTS = 2**24
"""Logits held at once: 64 MiB in float32, and about four times that in all while a chunk is at work."""


@dataclass(eq=False)
class Window:
    """One candidate for one step, and the trace's tokens behind the step, on which it is judged.

    `limit`: it fails once its KL, summed over the window in nats, reaches this.
    """

    trace: ReadTrace
    span: Span
    """The step's tokens, counted from the beginning of the prompt."""
    candidate: Sequence[int]
    num_tokens: int
    """T: tokens of the window."""
    limit: float = math.inf
    fits: bool = True
    """False: it would be longer than the model's context, and fails unread."""
    read_to_the_end: bool = False
    """Know the whole KL of one that fails, too."""
    kl_by_position: list[float] = field(default_factory=list)
    """Of the positions done, in nats."""
    kl: float = 0.0
    """Their sum."""
    branch: Branch = field(init=False)
    lead: int = field(init=False)
    """The branch's tokens in front of the window."""

    def __post_init__(self) -> None:
        following = self.trace.token_ids[self.span.end : self.span.end + self.num_tokens]
        # Something must come before the window to predict its first token: behind nothing, the prefix's last.
        start = self.span.start if self.candidate else self.span.start - 1
        lead = self.candidate or self.trace.token_ids[start : self.span.start]
        # The window's last token predicts nothing that is asked.
        self.branch = Branch(self.trace, start, [*lead, *following[:-1]])
        self.lead = len(lead)

    @property
    def num_done(self) -> int:
        return len(self.kl_by_position)

    @property
    def failed(self) -> bool:
        # A KL that is no number is not below the limit.
        return not self.fits or (self.num_tokens > 0 and not self.kl < self.limit)

    @property
    def finished(self) -> bool:
        return not self.fits or self.num_done == self.num_tokens or (self.failed and not self.read_to_the_end)

    def piece(self, positions: int) -> Piece:
        """Return what must be read for the next `positions` of the window."""
        return Piece(self.branch, self.branch.num_read, self.lead - 1 + min(self.num_done + positions, self.num_tokens))


class WindowScorer:
    """Scores windows, as many together as fit; `advance` reads one batch.

    `first_positions`: how much of a window is read before candidates are sorted out for the first time; from then on, what has
    been read is made `growth` times as long each time. `max_batch_tokens`: tokens of one forward pass.
    """

    def __init__(self, model: "PreTrainedModel", *, max_batch_tokens: int = 2048, first_positions: int = 8, growth: int = 2):
        self._reader, self._head = BranchReader(model), plain_lm_head(model)
        self._max_batch_tokens, self._first_positions, self._growth = max_batch_tokens, first_positions, growth
        self._new: deque[Window] = deque()
        self._begun: list[Window] = []
        self.tokens_read = 0
        """By all passes so far, traces included."""

    @torch.inference_mode()
    def read_trace(self, token_ids: Sequence[int], *, with_entropy: bool = False) -> ReadTrace:
        self.tokens_read += len(token_ids)
        trace = self._reader.read_trace(token_ids)
        if not with_entropy:
            return trace
        pieces_LD = trace.hidden_LD.split(max(1, _HEAD_ELEMENTS // self._head.out_features))
        return replace(trace, entropy_L=torch.cat([_entropy(full_logits(self._head, piece_LD)) for piece_LD in pieces_LD]))

    def add(self, window: Window) -> None:
        self._new.append(window)

    @torch.inference_mode()
    def advance(self) -> list[Window]:
        """Read one batch of pieces; return the windows that are finished with it."""
        finished, batch = self._next_batch()
        if not batch:
            return finished
        read = self._reader.read([piece for _, piece in batch])
        self.tokens_read += len(read.hidden_ND)
        self._add_kl(batch, read)
        for window, piece in batch:
            if window.finished:
                finished.append(window)
            else:
                read.keep(piece)
                self._begun.append(window)
        return finished

    def _next_batch(self) -> tuple[list[Window], list[tuple[Window, Piece]]]:
        """Return windows that need no reading, and what to read together.

        What is furthest on comes first, so that few half-read branches are held.
        """
        finished: list[Window] = []
        batch: list[tuple[Window, Piece]] = []
        tokens = 0
        self._begun.sort(key=lambda window: window.num_done)
        while self._begun or self._new:
            source = self._begun or self._new
            window = self._begun[-1] if self._begun else self._new[0]
            if window.finished:
                finished.append(window)
            else:
                piece = window.piece(window.num_done * (self._growth - 1) or self._first_positions)
                if batch and tokens + len(piece) > self._max_batch_tokens:
                    break
                batch.append((window, piece))
                tokens += len(piece)
            source.pop() if source is self._begun else self._new.popleft()
        return finished, batch

    def _add_kl(self, batch: Sequence[tuple[Window, Piece]], read: ReadPieces) -> None:
        """Add to each window the KL of the positions that its piece predicts."""
        owner: list[int] = []
        rows: list[int] = []
        asked: list[tuple[ReadTrace, int]] = []
        first = 0
        for index, (window, piece) in enumerate(batch):
            done = piece.stop - window.lead + 1
            for position in range(window.num_done, done):
                owner.append(index)
                rows.append(first + window.lead - 1 + position - piece.start)
                # The token before t_1 predicts t_1, so the original's predictions start one position early.
                asked.append((window.trace, window.span.end - 1 + position))
            first += len(piece)
        kl_R = torch.empty(len(rows), dtype=torch.float64)
        for chunk in self._chunks(asked):
            original, row_of = _distinct([asked[index] for index in chunk])
            by_trace = groupby(original, key=lambda place: place[0])
            original_UD = torch.cat([trace.hidden_LD[[position for _, position in own]] for trace, own in by_trace])
            rewritten_RD = read.hidden_ND[[rows[index] for index in chunk]]
            original_UV, rewritten_RV = (full_logits(self._head, hidden) for hidden in (original_UD, rewritten_RD))
            kl_R[chunk] = _kl(original_UV, rewritten_RV, row_of).double().cpu()
        for index, kl in zip(owner, kl_R.tolist(), strict=True):
            window = batch[index][0]
            window.kl_by_position.append(kl)
            window.kl += kl

    def _chunks(self, asked: Sequence[tuple[ReadTrace, int]]) -> Iterator[list[int]]:
        """Yield lists of places in `asked` whose logits fit; places that ask for the same position stand together."""
        number: dict[ReadTrace, int] = {}
        key = [(number.setdefault(trace, len(number)), position) for trace, position in asked]
        order = sorted(range(len(asked)), key=key.__getitem__)
        size = max(1, _HEAD_ELEMENTS // (2 * self._head.out_features))
        for first in range(0, len(order), size):
            yield order[first : first + size]


def _distinct(asked: Sequence[tuple[ReadTrace, int]]) -> tuple[list[tuple[ReadTrace, int]], list[int]]:
    """Return the distinct positions, and for each one asked which of them it is."""
    index: dict[tuple[ReadTrace, int], int] = {}
    row_of = [index.setdefault(position, len(index)) for position in asked]
    return list(index), row_of


def _kl(original_UV: torch.Tensor, rewritten_RV: torch.Tensor, row_of: Sequence[int]) -> torch.Tensor:
    """Return D_KL(original ‖ rewritten) of each row, in nats, from logits."""
    log_p_UV, log_q_RV = F.log_softmax(original_UV, dim=-1), F.log_softmax(rewritten_RV, dim=-1)
    log_p_RV = log_p_UV if len(log_p_UV) == len(log_q_RV) else log_p_UV[list(row_of)]
    return log_q_RV.neg_().add_(log_p_RV).mul_(log_p_RV.exp()).sum(-1)


def _entropy(logits_RV: torch.Tensor) -> torch.Tensor:
    log_p_RV = F.log_softmax(logits_RV, dim=-1)
    return -(log_p_RV.exp() * log_p_RV).sum(-1)

"""Which pairs go into which optimiser step, and which worker reads them: all of it follows from seed, epoch and ids."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tokensqueeze.fingerprint import seed_of
from tokensqueeze.training.pairs import EncodedPair


@dataclass(frozen=True)
class Batch:
    """The pairs of one optimiser step, over all workers; the last of an epoch may be smaller."""

    step: int
    """Counted from 1."""
    epoch: int
    """Counted from 1."""
    pairs: list[EncodedPair]

    @property
    def chosen_tokens(self) -> int:
        return sum(len(pair.chosen.token_ids) for pair in self.pairs)

    @property
    def num_tokens(self) -> int:
        return sum(pair.num_tokens for pair in self.pairs)


@dataclass(frozen=True)
class MicroBatch:
    """What one worker reads in one forward pass.

    A `filler` counts for nothing: it is there because every worker must take part in every forward and backward pass.
    """

    pairs: list[EncodedPair]
    filler: bool


def num_steps(*, num_pairs: int, batch_size: int, epochs: int) -> int:
    """Return how many optimiser steps a training takes."""
    return epochs * math.ceil(num_pairs / batch_size)


def batches(pairs: Sequence[EncodedPair], *, batch_size: int, epochs: int, seed: int) -> list[Batch]:
    """Return every optimiser step's batch, in order."""
    planned: list[Batch] = []
    for epoch in range(1, epochs + 1):
        order = sorted(pairs, key=lambda pair: (seed_of("training order", seed, epoch, pair.pair_id), pair.pair_id))
        for start in range(0, len(order), batch_size):
            planned.append(Batch(len(planned) + 1, epoch, order[start : start + batch_size]))
    return planned


def micro_batches(batch: Batch, *, micro_batch_size: int, num_workers: int, rank: int) -> list[MicroBatch]:
    """Return one worker's share of a batch; every worker gets as many micro-batches.

    Pairs of like length are read at the same time, so that little is padded and no worker waits long for another.
    """
    order = sorted(batch.pairs, key=lambda pair: (pair.longest, pair.pair_id))
    at_once = micro_batch_size * num_workers
    shares = [order[start : start + at_once][rank::num_workers] for start in range(0, len(order), at_once)]
    return [MicroBatch(share, filler=False) if share else MicroBatch(order[:1], filler=True) for share in shares]

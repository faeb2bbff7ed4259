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

    @property
    def num_tokens(self) -> int:
        return sum(pair.num_tokens for pair in self.pairs)


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


def micro_batches(batch: Batch, *, max_tokens: int, num_workers: int, rank: int) -> list[MicroBatch]:
    """Return one worker's share of a batch, of at most `max_tokens` packed tokens each or a single longer pair.

    Every worker gets as many micro-batches, and those read at the same time are of like length, so that no worker waits
    long for another.
    """
    rounds = 1
    while not _fits(shares := _spread(batch.pairs, rounds * num_workers), max_tokens):
        rounds += 1
    shares.sort(key=lambda share: (-_tokens(share), [pair.pair_id for pair in share]))
    mine: list[MicroBatch] = []
    for first in range(0, len(shares), num_workers):
        # To and fro, or the first worker would get the longest of every round.
        at_once = shares[first : first + num_workers][:: -1 if len(mine) % 2 else 1]
        share = at_once[rank]
        shortest = min(batch.pairs, key=lambda pair: (pair.num_tokens, pair.pair_id))
        mine.append(MicroBatch(share, filler=False) if share else MicroBatch([shortest], filler=True))
    return mine


def _spread(pairs: Sequence[EncodedPair], count: int) -> list[list[EncodedPair]]:
    """Spread pairs over `count` shares of about as many tokens: the longest first, each to the share with the fewest."""
    shares: list[list[EncodedPair]] = [[] for _ in range(count)]
    tokens = [0] * count
    for pair in sorted(pairs, key=lambda pair: (-pair.num_tokens, pair.pair_id)):
        least = tokens.index(min(tokens))
        shares[least].append(pair)
        tokens[least] += pair.num_tokens
    return shares


def _fits(shares: Sequence[Sequence[EncodedPair]], max_tokens: int) -> bool:
    return all(len(share) <= 1 or _tokens(share) <= max_tokens for share in shares)


def _tokens(share: Sequence[EncodedPair]) -> int:
    return sum(pair.num_tokens for pair in share)

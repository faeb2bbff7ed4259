"""The pairs that training can use: with whole reference scores, and both sides within the context."""

import math
from dataclasses import dataclass

import numpy as np

from tokensqueeze.errors import NoPairsError, TrainingError
from tokensqueeze.schema import ScoredPair
from tokensqueeze.tables import Table


@dataclass(frozen=True)
class Side:
    """One completion of a pair, and its log-probability under the frozen reference, in nats."""

    token_ids: np.ndarray
    ref_logps: float


@dataclass(frozen=True)
class EncodedPair:
    """A pair as training needs it: ids, 4 bytes each, and no text."""

    pair_id: str
    prompt_token_ids: np.ndarray
    chosen: Side
    rejected: Side | None

    @property
    def sides(self) -> list[Side]:
        return [self.chosen] if self.rejected is None else [self.chosen, self.rejected]

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longer side."""
        return len(self.prompt_token_ids) + max(len(side.token_ids) for side in self.sides)

    @property
    def num_tokens(self) -> int:
        """Tokens that a forward pass over both sides reads."""
        return sum(len(self.prompt_token_ids) + len(side.token_ids) for side in self.sides)


@dataclass(frozen=True)
class UsablePairs:
    pairs: list[EncodedPair]
    left_out: list[str]
    """Ids of the pairs with a side longer than `max_length`."""


def usable_pairs(table: Table[ScoredPair], *, max_length: int, needs_rejected: bool) -> UsablePairs:
    """Read the pairs, and leave out whole each that is longer than `max_length` tokens.

    Raises `TrainingError` for a missing rejected side, an empty prompt or completion, and a reference score that is not
    finite; `NoPairsError` where nothing is left.
    """
    pairs: list[EncodedPair] = []
    left_out: list[str] = []
    for shard in range(table.num_shards()):
        for row in table.read_part(shard):
            pair = encode_pair(row, needs_rejected=needs_rejected)
            if pair.longest > max_length:
                left_out.append(pair.pair_id)
            else:
                pairs.append(pair)
    if not pairs:
        why = (
            f"all {len(left_out)} pairs are longer than training.max_length = {max_length}; raise it"
            if left_out
            else ("the table has none; draw more traces per problem, or harder problems")
        )
        raise NoPairsError(f"{table.path}: no pair to train on: {why}")
    return UsablePairs(pairs, left_out)


def encode_pair(row: ScoredPair, *, needs_rejected: bool) -> EncodedPair:
    """Keep of a pair what training needs; a rejected side that is not needed is dropped. Raises `TrainingError`."""
    rejected = None
    if needs_rejected:
        if row.rejected_token_ids is None:
            raise TrainingError(
                f'pair {row.pair_id}: no rejected side, which this objective needs; pair anew, or set objective.name = "sft"'
            )
        rejected = _side(row.pair_id, "rejected", row.rejected_token_ids, row.ref_rejected_logps)
    if not row.prompt_token_ids:
        raise TrainingError(f"pair {row.pair_id}: its prompt is empty; the first token of a completion must follow something")
    chosen = _side(row.pair_id, "chosen", row.chosen_token_ids, row.ref_chosen_logps)
    return EncodedPair(row.pair_id, np.array(row.prompt_token_ids, np.int32), chosen, rejected)


def _side(pair_id: str, name: str, token_ids: list[int], ref_logps: float | None) -> Side:
    if ref_logps is None or not math.isfinite(ref_logps):
        raise TrainingError(f"pair {pair_id}: ref_{name}_logps is {ref_logps}; delete the scored_pairs table and run again")
    if not token_ids:
        raise TrainingError(f"pair {pair_id}: its {name} completion has no tokens; pair anew")
    return Side(np.array(token_ids, np.int32), ref_logps)

"""The pairs that training can use: with whole reference scores, sides that differ, and both within the context."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tokensqueeze.errors import NoPairsError, TrainingError
from tokensqueeze.schema import ScoredPair
from tokensqueeze.tables import Table

LeftOut = Literal["too long", "both sides the same"]


@dataclass(frozen=True)
class Side:
    """One completion of a pair, and its log-probability under the frozen reference, in nats."""

    token_ids: np.ndarray
    ref_logps: float
    """NaN where the reference was not asked and the objective needs none."""


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
        """Tokens that a forward pass reads: the prompt once, and each side."""
        return len(self.prompt_token_ids) + sum(len(side.token_ids) for side in self.sides)


@dataclass(frozen=True)
class UsablePairs:
    pairs: list[EncodedPair]
    left_out: dict[str, LeftOut]
    """Why, by the pair's id."""

    @property
    def left_out_counts(self) -> Mapping[str, int]:
        """How many pairs were left out, by the reason."""
        return dict(sorted(Counter[str](self.left_out.values()).items()))


def usable_pairs(
    table: Table[ScoredPair], *, max_length: int, needs_rejected: bool, needs_reference: bool = True
) -> UsablePairs:
    """Read the pairs, and leave out whole each that is longer than `max_length` tokens or prefers a text to itself.

    Raises `TrainingError` for a missing rejected side, an empty prompt or completion, and a reference score that is needed
    and not finite; `NoPairsError` where nothing is left.
    """
    pairs: list[EncodedPair] = []
    left_out: dict[str, LeftOut] = {}
    for shard in range(table.num_shards()):
        for row in table.read_part(shard):
            pair = encode_pair(row, needs_rejected=needs_rejected, needs_reference=needs_reference)
            if reason := _reason_to_leave_out(pair, max_length):
                left_out[pair.pair_id] = reason
            else:
                pairs.append(pair)
    if not pairs:
        raise NoPairsError(f"{table.path}: no pair to train on: {_why_none(left_out, max_length)}")
    return UsablePairs(pairs, left_out)


def encode_pair(row: ScoredPair, *, needs_rejected: bool, needs_reference: bool = True) -> EncodedPair:
    """Keep of a pair what training needs; a rejected side that is not needed is dropped. Raises `TrainingError`."""
    rejected = None
    if needs_rejected:
        if row.rejected_token_ids is None:
            raise TrainingError(
                f'pair {row.pair_id}: no rejected side, which this objective needs; pair anew, or set objective.name = "sft"'
            )
        rejected = _side(row.pair_id, "rejected", row.rejected_token_ids, row.ref_rejected_logps, needs_reference)
    if not row.prompt_token_ids:
        raise TrainingError(f"pair {row.pair_id}: its prompt is empty; the first token of a completion must follow something")
    chosen = _side(row.pair_id, "chosen", row.chosen_token_ids, row.ref_chosen_logps, needs_reference)
    return EncodedPair(row.pair_id, np.array(row.prompt_token_ids, np.int32), chosen, rejected)


def _reason_to_leave_out(pair: EncodedPair, max_length: int) -> LeftOut | None:
    if pair.longest > max_length:
        return "too long"
    # Its preference loss has no gradient, whatever the model says.
    if pair.rejected is not None and np.array_equal(pair.chosen.token_ids, pair.rejected.token_ids):
        return "both sides the same"
    return None


def _why_none(left_out: Mapping[str, LeftOut], max_length: int) -> str:
    if not left_out:
        return "the table has none; draw more traces per problem, or harder problems"
    too_long = sum(reason == "too long" for reason in left_out.values())
    same = len(left_out) - too_long
    if not same:
        return (
            f"all {too_long} pairs are longer than {max_length} tokens, the less of training.max_length and the model's context"
        )
    if not too_long:
        return f"all {same} pairs have the same chosen and rejected completion; pair anew"
    return (
        f"{too_long} pairs are longer than {max_length} tokens, {same} have the same chosen and rejected "
        "completion; raise it, or pair anew"
    )


def _side(pair_id: str, name: str, token_ids: list[int], ref_logps: float | None, needs_reference: bool) -> Side:
    if ref_logps is None or not math.isfinite(ref_logps):
        if needs_reference:
            raise TrainingError(f"pair {pair_id}: ref_{name}_logps is {ref_logps}; delete the scored_pairs table and run again")
        ref_logps = math.nan
    if not token_ids:
        raise TrainingError(f"pair {pair_id}: its {name} completion has no tokens; pair anew")
    return Side(np.array(token_ids, np.int32), ref_logps)

"""Which pairs are used, in which order, by which worker, and as which tensors."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokensqueeze.errors import NoPairsError, TrainingError
from tokensqueeze.schema import ScoredPair
from tokensqueeze.tables import Table
from tokensqueeze.training.batches import batches, micro_batches, num_steps
from tokensqueeze.training.collate import collate
from tokensqueeze.training.pairs import EncodedPair, encode_pair, usable_pairs


def test_pair_with_a_side_over_the_limit_is_left_out_whole(tmp_path: Path) -> None:
    # Prompt 3: the longer sides take 3 + 5 = 8 and 3 + 6 = 9 tokens.
    table = _table(tmp_path, [_row("a", chosen=2, rejected=5), _row("b", chosen=2, rejected=6)])
    usable = usable_pairs(table, max_length=8, needs_rejected=True)
    assert [pair.pair_id for pair in usable.pairs] == ["a"]
    assert usable.left_out == ["b"]


def test_rejected_side_counts_for_nothing_where_it_is_not_needed(tmp_path: Path) -> None:
    table = _table(tmp_path, [_row("a", chosen=2, rejected=90)])
    (pair,) = usable_pairs(table, max_length=8, needs_rejected=False).pairs
    assert (pair.rejected, pair.longest, pair.num_tokens) == (None, 5, 5)


def test_no_pair_within_the_limit_is_an_error_that_names_it(tmp_path: Path) -> None:
    table = _table(tmp_path, [_row("a", chosen=2, rejected=6)])
    with pytest.raises(NoPairsError, match=r"all 1 pairs are longer than training\.max_length = 8; raise it"):
        usable_pairs(table, max_length=8, needs_rejected=True)


def test_empty_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoPairsError, match="no pair to train on: the table has none"):
        usable_pairs(_table(tmp_path, []), max_length=8, needs_rejected=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rejected_token_ids": None}, "pair a: no rejected side"),
        ({"prompt_token_ids": []}, "pair a: its prompt is empty"),
        ({"chosen_token_ids": []}, "pair a: its chosen completion has no tokens"),
        ({"ref_chosen_logps": float("inf")}, "pair a: ref_chosen_logps is inf"),
        ({"ref_rejected_logps": None}, "pair a: ref_rejected_logps is None"),
    ],
)
def test_pair_that_is_not_whole_is_an_error(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    row = dataclasses.replace(_row("a", chosen=2, rejected=3), **changes)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=message):
        usable_pairs(_table(tmp_path, [row]), max_length=99, needs_rejected=True)


@given(count=st.integers(1, 40), batch_size=st.integers(1, 12), epochs=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_epoch_reads_every_pair_once(count: int, batch_size: int, epochs: int, seed: int) -> None:
    pairs = [_encoded(str(index)) for index in range(count)]
    planned = batches(pairs, batch_size=batch_size, epochs=epochs, seed=seed)
    assert [batch.step for batch in planned] == list(
        range(1, num_steps(num_pairs=count, batch_size=batch_size, epochs=epochs) + 1)
    )
    for epoch in range(1, epochs + 1):
        sizes = [len(batch.pairs) for batch in planned if batch.epoch == epoch]
        read = [pair.pair_id for batch in planned if batch.epoch == epoch for pair in batch.pairs]
        assert Counter(read) == Counter(pair.pair_id for pair in pairs)
        assert sizes[:-1] == [batch_size] * (len(sizes) - 1)


def test_order_follows_from_ids_seed_and_epoch_and_not_from_the_tables_order() -> None:
    pairs = [_encoded(str(index)) for index in range(20)]

    def order(pairs: Sequence[EncodedPair], seed: int) -> list[list[str]]:
        return [[p.pair_id for p in batch.pairs] for batch in batches(pairs, batch_size=20, epochs=2, seed=seed)]

    first, second = order(pairs, 0)
    assert order(pairs[::-1], 0) == [first, second]
    assert first != second
    assert order(pairs, 1) != [first, second]


@given(count=st.integers(1, 30), micro=st.integers(1, 4), workers=st.integers(1, 4))
def test_workers_share_a_batch_and_take_part_in_every_pass(count: int, micro: int, workers: int) -> None:
    (batch,) = batches([_encoded(str(i), chosen=1 + i % 7) for i in range(count)], batch_size=30, epochs=1, seed=0)
    shares = [micro_batches(batch, micro_batch_size=micro, num_workers=workers, rank=rank) for rank in range(workers)]
    assert len({len(share) for share in shares}) == 1
    read = [pair.pair_id for share in shares for part in share if not part.filler for pair in part.pairs]
    assert sorted(read) == sorted(pair.pair_id for pair in batch.pairs)
    assert all(1 <= len(part.pairs) <= micro for share in shares for part in share)


def test_rows_are_padded_on_the_right_with_rejected_sides_below() -> None:
    tensors = collate([_encoded("a", chosen=1, rejected=2), _encoded("b", chosen=4, rejected=1)], device=torch.device("cpu"))
    prompt, chosen, rejected = [1, 1, 1], 2, 3
    assert tensors.token_ids_RT.tolist() == [
        [*prompt, chosen, 0, 0, 0],
        [*prompt, chosen, chosen, chosen, chosen],
        [*prompt, rejected, rejected, 0, 0],
        [*prompt, rejected, 0, 0, 0],
    ]
    assert tensors.lengths_R.tolist() == [4, 7, 5, 4]
    assert tensors.num_tokens_R.tolist() == [1, 4, 2, 1]
    assert tensors.ref_logps_R.tolist() == [-1.0, -4.0, -2.0, -1.0]


def _row(pair_id: str, *, chosen: int, rejected: int) -> ScoredPair:
    return ScoredPair(
        pair_id=pair_id,
        problem_id="p",
        prompt="prompt",
        chosen="chosen",
        rejected="rejected",
        prompt_token_ids=[1, 1, 1],
        chosen_token_ids=[2] * chosen,
        rejected_token_ids=[3] * rejected,
        chosen_num_tokens=chosen,
        rejected_num_tokens=rejected,
        chosen_trace_id="c",
        rejected_trace_id="r",
        ref_chosen_logps=-float(chosen),
        ref_rejected_logps=-float(rejected),
    )


def _encoded(pair_id: str, *, chosen: int = 2, rejected: int = 3) -> EncodedPair:
    return encode_pair(_row(pair_id, chosen=chosen, rejected=rejected), needs_rejected=True)


def _table(folder: Path, rows: Sequence[ScoredPair]) -> Table[ScoredPair]:
    table = Table(folder, ScoredPair)
    table.write_part(0, rows, {})
    table.complete({"num_shards": 1})
    return table

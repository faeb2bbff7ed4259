"""Which pairs are used, in which order, by which worker, and as which tensors."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokensqueeze.config import TrainingSettings
from tokensqueeze.errors import NoPairsError, TrainingError
from tokensqueeze.schema import ScoredPair
from tokensqueeze.tables import Table
from tokensqueeze.training.batches import batches, micro_batches, num_steps
from tokensqueeze.training.collate import collate
from tokensqueeze.training.job import longest_sequence
from tokensqueeze.training.pairs import EncodedPair, encode_pair, usable_pairs


def test_pair_with_a_side_over_the_limit_is_left_out_whole(tmp_path: Path) -> None:
    # Prompt 3: the longer sides take 3 + 5 = 8 and 3 + 6 = 9 tokens.
    table = _table(tmp_path, [_row("a", chosen=2, rejected=5), _row("b", chosen=2, rejected=6)])
    usable = usable_pairs(table, max_length=8, needs_rejected=True)
    assert [pair.pair_id for pair in usable.pairs] == ["a"]
    assert (usable.left_out, usable.left_out_counts) == ({"b": "too long"}, {"too long": 1})


def test_pair_that_prefers_a_text_to_itself_is_left_out_unless_one_side_is_all_that_is_needed(tmp_path: Path) -> None:
    same = dataclasses.replace(_row("a", chosen=2, rejected=2), rejected_token_ids=[2, 2])
    table = _table(tmp_path, [same, _row("b", chosen=2, rejected=2), _row("c", chosen=2, rejected=90)])
    usable = usable_pairs(table, max_length=8, needs_rejected=True)
    assert [pair.pair_id for pair in usable.pairs] == ["b"]
    assert usable.left_out == {"a": "both sides the same", "c": "too long"}
    alone = usable_pairs(table, max_length=8, needs_rejected=False)
    assert ([pair.pair_id for pair in alone.pairs], alone.left_out) == (["a", "b", "c"], {})


def test_reference_scores_are_asked_for_only_where_the_objective_needs_them(tmp_path: Path) -> None:
    row = dataclasses.replace(_row("a", chosen=2, rejected=3), ref_rejected_logps=None)
    table = _table(tmp_path, [row])
    (pair,) = usable_pairs(table, max_length=8, needs_rejected=True, needs_reference=False).pairs
    assert pair.rejected is not None
    assert (pair.chosen.ref_logps, math.isnan(pair.rejected.ref_logps)) == (-2.0, True)
    with pytest.raises(TrainingError, match="pair a: ref_rejected_logps is None"):
        usable_pairs(table, max_length=8, needs_rejected=True)


def test_one_pair_is_enough(tmp_path: Path) -> None:
    usable = usable_pairs(_table(tmp_path, [_row("a", chosen=2, rejected=3)]), max_length=8, needs_rejected=True)
    (batch,) = batches(usable.pairs, batch_size=128, epochs=1, seed=0)
    assert [pair.pair_id for pair in batch.pairs] == ["a"]


def test_rejected_side_counts_for_nothing_where_it_is_not_needed(tmp_path: Path) -> None:
    table = _table(tmp_path, [_row("a", chosen=2, rejected=90)])
    (pair,) = usable_pairs(table, max_length=8, needs_rejected=False).pairs
    assert (pair.rejected, pair.longest, pair.num_tokens) == (None, 5, 5)


def test_no_pair_within_the_limit_is_an_error_that_names_it(tmp_path: Path) -> None:
    table = _table(tmp_path, [_row("a", chosen=2, rejected=6)])
    with pytest.raises(
        NoPairsError, match=r"all 1 pairs are longer than 8 tokens, the less of training\.max_length and the model's context"
    ):
        usable_pairs(table, max_length=8, needs_rejected=True)


def test_no_pair_left_for_two_reasons_is_an_error_that_names_both(tmp_path: Path) -> None:
    same = dataclasses.replace(_row("a", chosen=2, rejected=2), rejected_token_ids=[2, 2])
    with pytest.raises(NoPairsError, match="all 1 pairs have the same chosen and rejected completion; pair anew"):
        usable_pairs(_table(tmp_path / "same", [same]), max_length=8, needs_rejected=True)
    table = _table(tmp_path / "both", [same, _row("b", chosen=2, rejected=6)])
    with pytest.raises(NoPairsError, match=r"1 pairs are longer than 8 tokens, 1 have the same"):
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


def test_sequence_may_be_as_long_as_settings_and_model_both_allow(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 7}')
    assert [longest_sequence(TrainingSettings(max_length=length), tmp_path) for length in (6, 7, 8)] == [6, 7, 7]


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


@given(count=st.integers(1, 30), max_tokens=st.integers(1, 60), workers=st.integers(1, 4))
def test_workers_share_a_batch_and_take_part_in_every_pass(count: int, max_tokens: int, workers: int) -> None:
    (batch,) = batches([_encoded(str(i), chosen=1 + i % 7) for i in range(count)], batch_size=30, epochs=1, seed=0)
    shares = [micro_batches(batch, max_tokens=max_tokens, num_workers=workers, rank=rank) for rank in range(workers)]
    assert len({len(share) for share in shares}) == 1
    read = [pair.pair_id for share in shares for part in share if not part.filler for pair in part.pairs]
    assert sorted(read) == sorted(pair.pair_id for pair in batch.pairs)
    for part in (part for share in shares for part in share):
        assert len(part.pairs) == 1 or sum(pair.num_tokens for pair in part.pairs) <= max_tokens


def test_workers_read_about_as_many_tokens_at_the_same_time_and_in_all() -> None:
    # A prompt of 3, a rejected side of 3 and 4 to 35 chosen tokens: 10, 11, …, 41 tokens, 816 in all, 102 in each of 8 shares.
    (batch,) = batches([_encoded(f"{i:02}", chosen=4 + i) for i in range(32)], batch_size=32, epochs=1, seed=0)
    shares = [micro_batches(batch, max_tokens=110, num_workers=2, rank=rank) for rank in range(2)]
    tokens = [[sum(pair.num_tokens for pair in part.pairs) for part in share] for share in shares]
    assert tokens == [[102] * 4, [102] * 4]


def test_pairs_are_packed_with_their_prompt_once_and_the_chosen_side_first() -> None:
    tensors = collate([_encoded("a", chosen=1, rejected=2), _encoded("b", chosen=4, rejected=1)], device=torch.device("cpu"))
    prompt, chosen, rejected = [1, 1, 1], 2, 3
    first, second = [*prompt, chosen, rejected, rejected], [*prompt, chosen, chosen, chosen, chosen, rejected]
    assert tensors.packed.token_ids_N.tolist() == first + second
    assert tensors.packed.position_ids_N.tolist() == [0, 1, 2, 3, 3, 4, 0, 1, 2, 3, 4, 5, 6, 3]
    assert tensors.num_tokens_S.tolist() == [1, 2, 4, 1]
    assert tensors.ref_logps_S.tolist() == [-1.0, -2.0, -4.0, -1.0]


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

"""What the comparison with TRL computes by itself: which pairs, which ratios, which differences."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.train_vs_trl import Side, largest_difference, ratios
from benchmarks.training_task import (
    Outcome,
    Step,
    demo_pairs,
    file_pairs,
    fixture_pairs,
    padded_tokens,
    pair_lengths,
    real_tokens,
)
from tokensqueeze.engines.checkpoint import demo_model_dir
from tokensqueeze.training.pairs import EncodedPair
from tokensqueeze.training.pairs import Side as PairSide


def test_rejected_lengths_follow_the_quantiles_and_chosen_ones_are_about_half() -> None:
    lengths = pair_lengths(1000, seed=0)
    chosen, rejected = (np.array(side) for side in zip(*lengths, strict=True))
    assert np.quantile(rejected, [0.1, 0.5, 0.9, 0.99]) == pytest.approx([238, 424, 1029, 2000], rel=0.01)
    assert 0.5 < chosen.sum() / rejected.sum() < 0.6
    assert (chosen < rejected).all()


def test_pairs_from_the_fixtures_have_the_drawn_lengths_and_no_two_sides_are_equal() -> None:
    pairs = fixture_pairs(demo_model_dir(), num_pairs=20, seed=3, longest=1024)
    drawn = pair_lengths(20, seed=3)
    # Half the room of 2,048 tokens: half of every length.
    assert [pair.chosen_num_tokens for pair in pairs] == pytest.approx([chosen / 2 for chosen, _ in drawn], abs=1)
    assert len({tuple(pair.chosen_token_ids) for pair in pairs}) == 20
    for pair in pairs:
        assert pair.rejected_token_ids is not None
        assert len(pair.prompt_token_ids) + len(pair.rejected_token_ids) <= 1024


def test_demo_pairs_are_as_many_as_asked_for_and_have_two_different_sides() -> None:
    pairs = demo_pairs(demo_model_dir(), num_pairs=80)
    assert len(pairs) == 80
    assert all(pair.chosen_token_ids != pair.rejected_token_ids for pair in pairs)
    assert all("\\boxed{" in pair.chosen for pair in pairs)


def test_pairs_of_a_file_keep_their_texts_and_too_long_ones_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = ['{"prompt": "Q?", "chosen": "4", "rejected": "' + text + '"}' for text in ("5 " * 400, "no", "6", "7")]
    path.write_text("\n".join(rows))
    pairs = file_pairs(path, demo_model_dir(), num_pairs=2, longest=100)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs] == [("Q?", "4", "no"), ("Q?", "4", "6")]
    with pytest.raises(SystemExit, match="has 3 pairs of at most 100 tokens, 4 are needed"):
        file_pairs(path, demo_model_dir(), num_pairs=4, longest=100)


def test_padding_counts_every_row_as_long_as_the_longest_of_its_pass() -> None:
    pairs = [_pair(prompt=2, chosen=1, rejected=3), _pair(prompt=1, chosen=2, rejected=9)]
    # (2 + 1) + (2 + 3) + (1 + 2) + (1 + 9) tokens are real.
    assert real_tokens(pairs) == 21
    # Alone: two rows of 5 and two of 10. Together: four rows of 10.
    assert padded_tokens(pairs, at_once=1) == 30
    assert padded_tokens(pairs, at_once=2) == 40


def test_speed_is_held_against_the_fastest_and_memory_against_the_leanest() -> None:
    ours = Side(tokens_per_second=300, peak_bytes=3, imported_bytes=1)
    others = [Side(100, 5, 1), Side(200, 8, 1)]
    assert ratios(ours, others) == {"tokens_per_second_ratio": 1.5, "peak_memory_ratio": 0.6}


def test_speed_leaves_the_first_step_out() -> None:
    steps = [Step(0.7, 1.0, tokens=1000, seconds=100.0), Step(0.7, 1.0, 300, 2.0), Step(0.7, 1.0, 100, 2.0)]
    side = Side.of([Outcome(steps, imported_bytes=1, peak_bytes=7), Outcome(steps, imported_bytes=1, peak_bytes=9)])
    assert side == Side(tokens_per_second=100.0, peak_bytes=9, imported_bytes=1)


def test_difference_is_the_largest_of_all_steps_relative_to_the_other_trainer() -> None:
    ours = [Step(0.5, 1.0, 1, 1), Step(0.2, 3.0, 1, 1)]
    theirs = [Step(0.4, 1.0, 1, 1), Step(0.25, 4.0, 1, 1)]
    assert largest_difference(ours, theirs, "loss") == pytest.approx(0.25)
    assert largest_difference(ours, theirs, "grad_norm") == pytest.approx(0.25)
    with pytest.raises(ValueError, match="shorter"):
        largest_difference(ours, theirs[:1], "loss")


def _pair(*, prompt: int, chosen: int, rejected: int) -> EncodedPair:
    def ids(count: int) -> np.ndarray:
        return np.arange(count, dtype=np.int32)

    return EncodedPair("p", ids(prompt), PairSide(ids(chosen), -1.0), PairSide(ids(rejected), -2.0))

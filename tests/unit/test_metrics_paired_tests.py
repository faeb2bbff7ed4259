"""The paired test: hand-counted p-values, its rate of false alarms, and what it sees that an unpaired test does not."""

from itertools import product
from math import erfc, sqrt

import numpy as np
import pytest

from tests.unit.test_metrics import BASE, SQUEEZED, trace
from tokensqueeze.metrics.evaluation import change
from tokensqueeze.metrics.paired_tests import holm, sign_flip_p


def counted_p(differences: list[float]) -> float:
    """Count out all sign patterns in whole numbers; differences must be whole."""
    sums = [
        abs(sum(sign * own for sign, own in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(total >= abs(sum(differences)) for total in sums) / len(sums)


def test_counts_all_sign_patterns_of_few_problems() -> None:
    # Of ±1±2±3, |sum| ≥ 6 for +++ and −−−.
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    # |sum| ≥ 2 unless the sum is 0, which ++− and −−+ give.
    assert sign_flip_p([1, 2, -3]) == 1
    assert sign_flip_p([1, 2, 3, 4, -1]) == counted_p([1, 2, 3, 4, -1])


def test_problems_without_a_difference_change_nothing() -> None:
    assert sign_flip_p([0, 1, 0, 2, 3, 0]) == sign_flip_p([1, 2, 3])


def test_sums_that_are_equal_but_for_rounding_are_equal() -> None:
    # 0.3 − 0.1 − 0.2 is 0 in mathematics and not in floats: every pattern is as far from 0, or farther.
    assert sign_flip_p([0.1, 0.2, -0.3]) == 1
    assert sign_flip_p([0.1] * 10) == 2 / 2**10


def test_direction_and_unit_do_not_matter() -> None:
    differences = [0.5, -0.25, 1.0, 0.125, 0.75]
    assert (
        sign_flip_p([-own for own in differences])
        == sign_flip_p(differences)
        == sign_flip_p([1000 * own for own in differences])
    )


def test_many_problems_are_drawn_and_agree_with_the_count() -> None:
    differences = [3, -1, 4, 1, -5, 9, 2, -6, 5, 3, 5, -8, 9, 7, 9, -3]
    exact = counted_p(list(differences))
    assert sign_flip_p(differences) == pytest.approx(exact, abs=4 * sqrt(exact * (1 - exact) / 20_000))
    assert sign_flip_p(differences) == sign_flip_p(differences)


def test_a_drawn_p_value_is_never_zero() -> None:
    assert sign_flip_p([1.0] * 300) == 1 / 20_001


def test_one_problem_has_no_p_value_and_no_difference_is_no_evidence() -> None:
    assert sign_flip_p([0.5]) is None
    assert sign_flip_p([]) is None
    assert sign_flip_p([0.0, 0.0]) == 1


def test_alarms_falsely_as_often_as_it_says_though_samples_of_a_problem_are_alike() -> None:
    rng, ps = np.random.default_rng(8), []
    for _ in range(600):
        ease_P = rng.beta(0.5, 0.5, (12, 1))
        # The same ease for both models, six samples each; lengths make the values continuous.
        first, second = ((rng.random((12, 6)) < ease_P) * rng.uniform(0.5, 1, (12, 6)) for _ in range(2))
        ps.append(sign_flip_p(list((second - first).mean(axis=1))) or 0)
    for level in (0.02, 0.05, 0.1, 0.25, 0.5, 0.75):
        assert np.mean(np.array(ps) <= level) == pytest.approx(level, abs=3.5 * sqrt(level * (1 - level) / 600))


def test_finds_what_an_unpaired_test_misses() -> None:
    rng = np.random.default_rng(9)
    paired = unpaired = 0
    for _ in range(100):
        ease_P = rng.choice([0.1, 0.9], 14)
        first = rng.binomial(16, ease_P) / 16
        second = rng.binomial(16, np.clip(ease_P + 0.15 * (ease_P < 0.5) + 0.08 * (ease_P > 0.5), 0, 1)) / 16
        paired += (sign_flip_p(list(second - first)) or 1) <= 0.05
        error = sqrt((first.var(ddof=1) + second.var(ddof=1)) / 14)
        unpaired += erfc(abs(second.mean() - first.mean()) / error / sqrt(2)) <= 0.05
    assert paired >= 80
    assert unpaired <= 5


def test_holm_multiplies_the_smallest_p_by_all_the_next_by_one_less() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3·0.01; 2·0.03; 1·0.04, not below 0.06
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_leaves_unknown_p_values_out() -> None:
    assert holm([None, 0.02, None, 0.04]) == [None, 0.04, None, 0.04]


def test_a_change_has_the_p_values_of_its_per_problem_differences() -> None:
    found = change(BASE, SQUEEZED, 1000)
    assert found.accuracy_p == counted_p([1, -2, 2])  # +0.5, −1, +1
    assert found.auc_p == counted_p([5, -7, 9])  # 0.95 − 0.45, 0 − 0.7, 0.9 − 0
    assert found.length_p == 2 / 8  # 200 → 50, 300 → 150, 300 → 100: all shorter


def test_the_test_of_the_lengths_asks_what_their_ratio_says() -> None:
    # Ten problems half as long, one longer by more than all of that: the ratio is above 1, and chance could do it.
    before = [trace(name, "correct", 100) for name in "abcdefghij"] + [trace("z", "correct", 10_000)]
    after = [trace(name, "correct", 50) for name in "abcdefghij"] + [trace("z", "correct", 12_000)]
    found = change(before, after, 20_000)
    assert found.length_ratio > 1
    # |±2000 ± 50 … ± 50| ≥ 1500 whatever the signs of the fifties.
    assert found.length_p == 1

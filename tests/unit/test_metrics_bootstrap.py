"""Bootstrap intervals: against all resamples counted out, against coverage of a known truth, and where there are none."""

import random
from itertools import product
from statistics import fmean

import numpy as np
import pytest

from tests.unit.test_metrics import BASE, simulated, trace
from tokensqueeze.metrics.bootstrap import mean_interval, percentile_interval, ratio_interval, resampled_means
from tokensqueeze.metrics.evaluation import change, measure
from tokensqueeze.metrics.token_budget import budget_curve


def test_the_resamples_are_those_that_drawing_with_replacement_gives() -> None:
    values = [0.0, 1.0, 5.0]
    every = sorted(fmean(draw) for draw in product(values, repeat=3))  # 27, all equally likely
    drawn = resampled_means([values])[:, 0]
    for mean in set(every):
        expected = every.count(mean) / 27
        assert np.isclose(drawn, mean).mean() == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 2000) ** 0.5)


def test_an_interval_of_a_mean_agrees_with_its_normal_approximation() -> None:
    values = list(np.random.default_rng(5).normal(3, 2, 400))
    low, high = mean_interval(values) or (0, 0)
    half = 1.96 * np.std(values, ddof=1) / 20
    assert (low, high) == (pytest.approx(np.mean(values) - half, abs=0.03), pytest.approx(np.mean(values) + half, abs=0.03))


def test_an_interval_of_a_ratio_draws_both_sums_of_the_same_problems() -> None:
    lengths = [float(length) for length in np.random.default_rng(6).integers(10, 1000, 50)]
    low, high = ratio_interval([0.5 * length + i % 2 for i, length in enumerate(lengths)], lengths) or (0, 0)
    assert 0.5 < low < high < 0.505  # drawn apart, the sums would differ by tenths


def test_intervals_hold_the_truth_in_95_of_100_evaluations_and_intervals_over_samples_do_not() -> None:
    rng = np.random.default_rng(7)
    clustered = unclustered = 0
    for _ in range(200):
        ease_P = rng.beta(0.5, 0.5, 40)  # true mean: 0.5
        right_PS = rng.random((40, 8)) < ease_P[:, None]
        low, high = mean_interval(list(right_PS.mean(axis=1))) or (0, 0)
        clustered += low <= 0.5 <= high
        share, error = right_PS.mean(), 1.96 * right_PS.std() / right_PS.size**0.5
        unclustered += abs(share - 0.5) <= error
    assert 182 <= clustered <= 198
    assert unclustered < 150


def test_the_problems_order_does_not_change_an_interval() -> None:
    traces = simulated(random.Random(1), 30, 4, 1.0)
    assert measure(traces, 400) == measure(traces[::-1], 400)
    others = simulated(random.Random(2), 30, 4, 0.7)
    assert change(traces, others, 400) == change(traces[::-1], others, 400)


def test_an_interval_surrounds_its_figure() -> None:
    cell = measure(simulated(random.Random(1), 60, 4, 1.0), 400)
    for name in ("accuracy", "length_all", "length_correct", "thinking_length", "auc"):
        low, high = getattr(cell, f"{name}_ci")
        assert low < getattr(cell, name) < high


def test_one_problem_and_problems_that_agree_have_no_interval() -> None:
    assert mean_interval([0.5]) is None
    assert mean_interval([1 / 3, 1 / 3, 1 / 3]) is None
    assert ratio_interval([1.0], [2.0]) is None
    cell = measure([trace("a", "correct", 10), trace("a", "incorrect", 20)], 100)
    assert {value for name, value in vars(cell).items() if name.endswith("_ci")} == {None}


def test_a_length_of_correct_answers_that_most_resamples_lack_has_no_interval() -> None:
    one_right = [trace("a", "correct", 10), *(trace(name, "incorrect", 20) for name in "bcdef")]
    assert measure(one_right, 100).length_correct_ci is None
    assert measure([trace(name, "incorrect", 20) for name in "bcdef"], 100).length_correct_ci is None
    # Four right of eight: one resample in 256 has none.
    half_right = [
        trace(name, "correct" if name < "e" else "incorrect", 10 * (1 + "abcdefgh".index(name))) for name in "abcdefgh"
    ]
    assert measure(half_right, 100).length_correct_ci == pytest.approx([10, 40], abs=10)


def test_figures_that_are_missing_count_against_the_rest() -> None:
    known = np.arange(100.0)
    assert percentile_interval(np.concatenate([known, [np.nan] * 5])) == pytest.approx([2.475, 96.525])
    assert percentile_interval(np.concatenate([known, [np.nan] * 6])) is None


def test_a_curve_has_the_accuracy_of_each_budget_and_its_interval() -> None:
    curve = budget_curve(BASE, [99, 100, 200, 400])
    # a: right at 100; b: right at 200 and 400; c: never.
    assert curve.accuracy == pytest.approx([0, 0.5 / 3, (0.5 + 0.5) / 3, (0.5 + 1) / 3])
    assert curve.intervals[0] is None
    assert curve.intervals[3] == measure(BASE, 1000).accuracy_ci


def test_a_curve_weighs_problems_alike_however_many_samples_they_have() -> None:
    curve = budget_curve([*[trace("a", "correct", 10)] * 9, trace("b", "correct", 30)], [10, 30])
    assert curve.accuracy == [0.5, 1]

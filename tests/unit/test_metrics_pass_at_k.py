"""pass@k against the definition: draw k of the n samples without replacement, and see whether one of them is right."""

from fractions import Fraction
from itertools import combinations
from math import comb

import pytest

from tests.unit.test_metrics import trace
from tokensqueeze.metrics.evaluation import measure
from tokensqueeze.metrics.pass_at_k import measurable_k, pass_at_k


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 2), (6, 1, 3), (6, 5, 1), (4, 0, 4), (7, 7, 2), (5, 3, 3)])
def test_is_the_share_of_all_draws_that_hold_a_right_sample(n: int, c: int, k: int) -> None:
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-15)


def test_stays_exact_where_the_binomials_have_thousands_of_digits() -> None:
    n, c, k = 20_000, 3, 4_096
    assert pass_at_k(n, c, k) == pytest.approx(float(1 - Fraction(comb(n - c, k), comb(n, k))), rel=1e-12)


def test_one_sample_is_as_often_right_as_the_accuracy_says() -> None:
    assert [pass_at_k(8, c, 1) for c in range(9)] == pytest.approx([c / 8 for c in range(9)])


def test_k_goes_in_powers_of_two_up_to_what_there_is() -> None:
    assert measurable_k(1) == [1]
    assert measurable_k(15) == [1, 2, 4, 8]
    assert measurable_k(16) == [1, 2, 4, 8, 16]


def test_a_cell_has_every_k_that_its_poorest_problem_allows() -> None:
    right, wrong = trace("a", "correct", 10), trace("a", "incorrect", 10)
    easy, hard = [right] * 3 + [wrong], [trace("b", "correct", 10)] + 4 * [trace("b", "incorrect", 10)]
    cell = measure([*easy, *hard], 100)
    # a: 3 of 4 right, b: 1 of 5; four of b's five samples hold the right one in 4 of 5 draws.
    assert {k: passed.value for k, passed in cell.pass_at_k.items()} == pytest.approx(
        {"1": (3 / 4 + 1 / 5) / 2, "2": (1 + 2 / 5) / 2, "4": (1 + 4 / 5) / 2}
    )
    assert cell.pass_at_k["1"].value == pytest.approx(cell.accuracy)
    assert cell.pass_at_k["1"].ci == pytest.approx(cell.accuracy_ci)


def test_without_a_right_sample_it_is_0_and_its_interval_unknown() -> None:
    cell = measure([trace(name, "incorrect", 10) for name in "aabb"], 100)
    assert [(k, passed.value, passed.ci) for k, passed in cell.pass_at_k.items()] == [("1", 0, None), ("2", 0, None)]

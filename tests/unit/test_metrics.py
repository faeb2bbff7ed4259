"""The numbers of an evaluation, against hand calculations, the paper's tables, and slower second implementations."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from math import sqrt
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensqueeze.errors import TableError
from tokensqueeze.metrics.difficulty import by_difficulty, by_level, measured_half, pass_rates, sorted_apart
from tokensqueeze.metrics.evaluation import change, evaluation_json, measure
from tokensqueeze.metrics.intervals import Estimate, clustered_mean, clustered_ratio
from tokensqueeze.metrics.token_budget import accuracy_at_budgets, auc
from tokensqueeze.schema import Decoding, EvaluationTrace, FinishReason, Verdict

SAMPLES = st.lists(st.tuples(st.booleans(), st.integers(0, 60)), min_size=1, max_size=30)


def trace(
    problem_id: str,
    verdict: Verdict,
    thinking_tokens: int,
    answer_tokens: int = 0,
    *,
    finish_reason: FinishReason = "stop",
    decoding: Decoding = "sampled",
    sample_index: int = 0,
) -> EvaluationTrace:
    return EvaluationTrace(
        trace_id=f"{problem_id}/{verdict}/{thinking_tokens}",
        problem_id=problem_id,
        sample_index=sample_index,
        text="",
        token_ids=[],
        num_tokens=thinking_tokens + answer_tokens,
        finish_reason=finish_reason,
        verdict=verdict,
        extracted_answer=None,
        verdict_cause=None,
        thinking_tokens=thinking_tokens,
        answer_tokens=answer_tokens,
        decoding=decoding,
    )


BASE = [
    trace("a", "correct", 80, 20),
    trace("a", "incorrect", 290, 10),
    trace("b", "correct", 180, 20),
    trace("b", "correct", 380, 20),
    trace("c", "no_answer", 400, 0, finish_reason="length"),
    trace("c", "unverifiable", 190, 10),
]
SQUEEZED = [
    trace("c", "correct", 90, 10),
    trace("a", "correct", 40, 10),
    trace("b", "incorrect", 140, 10),
]


def simulated(rng: random.Random, num_problems: int, num_samples: int, shortening: float) -> list[EvaluationTrace]:
    traces = []
    for problem in range(num_problems):
        ease = random.Random(problem).random()
        for _ in range(num_samples):
            length = max(1, int(shortening * rng.gauss(300 - 200 * ease, 40)))
            traces.append(trace(f"p{problem}", "correct" if rng.random() < ease else "incorrect", length, 5))
    return traces


def bootstrap_se(problems: Sequence[object], statistic: Callable[[list], float], draws: int = 2000) -> float:
    """The standard deviation of a statistic over problems drawn with replacement."""
    rng = random.Random(0)
    return stdev(statistic(rng.choices(problems, k=len(problems))) for _ in range(draws))


# AUC over token budgets


@pytest.mark.parametrize(
    ("accuracy", "length_correct", "printed"),
    # Acc, Len-T and AUC of 13 of the 16 cells of the paper's table; of base on MATH-500 (7B and 1.5B) and of base 7B on
    # AIME24 the three printed numbers do not follow from each other.
    [
        (92.4, 1773, 87.5),
        (83.2, 2005, 78.1),
        (57.5, 5157, 48.5),
        (28.9, 7374, 22.5),
        (33.3, 5841, 27.4),
        (39.2, 6646, 31.2),
        (39.8, 4711, 34.1),
        (24.4, 5818, 20.1),
        (24.4, 4672, 20.9),
        (31.3, 3961, 27.5),
        (35.0, 3200, 31.6),
        (13.4, 2629, 12.3),
        (16.7, 2587, 15.4),
    ],
)
def test_auc_gives_the_papers_values_from_its_accuracies_and_lengths(accuracy: float, length_correct: int, printed: float):
    right = round(10 * accuracy)
    correct = right * [True] + (1000 - right) * [False]
    assert 100 * auc(correct, 1000 * [length_correct], 32768) == pytest.approx(printed, abs=0.15)


def test_auc_of_a_hand_calculation():
    # (1 − 10/100) + 0 + 0 (over the budget) + (1 − 50/100), over 4
    assert auc([True, False, True, True], [10, 20, 130, 50], 100) == pytest.approx(0.35)


@given(SAMPLES, st.integers(1, 40))
def test_auc_is_the_mean_accuracy_over_all_smaller_budgets(samples: list[tuple[bool, int]], budget: int):
    correct, lengths = [right for right, _ in samples], [length for _, length in samples]
    curve = accuracy_at_budgets(correct, lengths, range(budget))
    assert auc(correct, lengths, budget) == pytest.approx(fmean(curve))


def test_accuracy_at_a_budget_counts_the_correct_samples_within_it():
    assert accuracy_at_budgets([True, False, True, True], [10, 20, 130, 50], [9, 10, 50, 1000]) == [0, 0.25, 0.5, 0.75]


def test_auc_of_nothing_is_an_error():
    with pytest.raises(TableError, match="no evaluation traces to measure"):
        auc([], [], 100)


# Standard errors


def test_the_error_of_a_mean_is_the_standard_deviation_over_the_root_of_the_problems():
    # sd of 0, 0.5, 1 is 0.5
    assert astuple(clustered_mean([0, 0.5, 1])) == pytest.approx((0.5, 0.5 / sqrt(3)))


def test_one_problem_has_no_standard_error():
    assert clustered_mean([0.5]) == Estimate(0.5, None)
    assert clustered_ratio([1], [2]) == Estimate(0.5, None)


def test_the_error_of_a_ratio_is_the_jackknifes():
    # Leaving out the first, second and third problem.
    rests = [5 / 6, 4 / 5, 3 / 5]
    variance = 2 / 3 * sum((rest - sum(rests) / 3) ** 2 for rest in rests)
    ratio = clustered_ratio([1, 2, 3], [2, 3, 3])
    assert ratio and astuple(ratio) == pytest.approx((0.75, sqrt(variance)))


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20))
def test_a_ratio_to_ones_is_a_mean(values: list[float]):
    mean, ratio = clustered_mean(values), clustered_ratio(values, len(values) * [1.0])
    assert ratio is not None
    assert ratio.value == pytest.approx(mean.value, abs=1e-9)
    assert ratio.standard_error == pytest.approx(mean.standard_error, abs=1e-6)


def test_a_ratio_to_nothing_is_nothing():
    assert clustered_ratio([1, 2], [0, 0]) is None


def test_a_ratio_that_hangs_on_one_problem_has_no_standard_error():
    ratio = clustered_ratio([0, 30, 0], [0, 1 / 3, 0])
    assert ratio and (ratio.value, ratio.standard_error) == (pytest.approx(90), None)


# One model's numbers


def test_measures_a_hand_calculated_evaluation():
    cell = measure(BASE, 1000)
    assert cell.accuracy == pytest.approx((0.5 + 1 + 0) / 3)
    assert cell.accuracy_se == pytest.approx(0.5 / sqrt(3))
    assert cell.length_all == pytest.approx((200 + 300 + 300) / 3)
    assert cell.length_all_se == pytest.approx(100 / 3)  # sd of 200, 300, 300 is 100/√3
    assert cell.length_correct == pytest.approx((100 + 200 + 400) / 3)
    assert cell.thinking_length == pytest.approx((185 + 280 + 295) / 3)
    assert cell.answer_length == pytest.approx((15 + 20 + 5) / 3)
    assert cell.auc == pytest.approx((0.9 + 0 + 0.8 + 0.6 + 0 + 0) / 6)
    assert cell.auc_se == pytest.approx(stdev([0.45, 0.7, 0]) / sqrt(3))
    assert cell.truncated == pytest.approx(1 / 6)
    assert cell.unverifiable == pytest.approx(1 / 6)
    assert (cell.num_problems, cell.num_samples) == (3, 6)


def test_the_length_of_correct_samples_is_unknown_when_none_is():
    cell = measure([trace("a", "incorrect", 10), trace("b", "no_answer", 10)], 100)
    assert (cell.accuracy, cell.auc, cell.length_correct, cell.length_correct_se) == (0, 0, None, None)


def test_every_problem_weighs_the_same_however_many_samples_it_has():
    traces = [trace("a", "correct", 10)] * 9 + [trace("b", "incorrect", 30)]
    cell = measure(traces, 100)
    assert (cell.accuracy, cell.length_all) == (0.5, 20)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.integers(0, 100)), min_size=1, max_size=30))
def test_auc_is_accuracy_times_what_is_left_of_the_budget(samples: list[tuple[str, bool, int]]):
    cell = measure([trace(name, "correct" if right else "incorrect", length) for name, right, length in samples], 100)
    assert cell.auc == pytest.approx(cell.accuracy * (1 - (cell.length_correct or 0) / 100), abs=1e-12)
    assert cell.thinking_length + cell.answer_length == pytest.approx(cell.length_all)


def test_the_errors_of_one_model_agree_with_a_bootstrap_over_problems():
    traces = simulated(random.Random(1), 120, 4, 1.0)
    cell = measure(traces, 400)
    by_problem = [[t for t in traces if t.problem_id == f"p{i}"] for i in range(120)]

    def accuracy(problems: list[list[EvaluationTrace]]) -> float:
        return fmean(t.verdict == "correct" for own in problems for t in own)

    def length_correct(problems: list[list[EvaluationTrace]]) -> float:
        return fmean(t.num_tokens for own in problems for t in own if t.verdict == "correct")

    assert cell.accuracy_se == pytest.approx(bootstrap_se(by_problem, accuracy), rel=0.1)
    assert cell.length_correct == pytest.approx(length_correct(by_problem))
    assert cell.length_correct_se == pytest.approx(bootstrap_se(by_problem, length_correct), rel=0.1)


def test_more_samples_of_the_same_problems_do_not_shrink_the_error_as_more_problems_would():
    few = measure(simulated(random.Random(2), 100, 2, 1.0), 400)
    many = measure(simulated(random.Random(2), 100, 32, 1.0), 400)
    assert few.accuracy_se and many.accuracy_se
    assert many.accuracy_se > 0.6 * few.accuracy_se  # as if independent it would be a quarter


# Two models


def test_compares_a_hand_calculated_pair_whatever_the_order_of_the_problems():
    found = change(BASE, SQUEEZED, 1000)
    assert found.accuracy == pytest.approx((0.5 - 1 + 1) / 3)
    assert found.accuracy_se == pytest.approx(stdev([0.5, -1, 1]) / sqrt(3))
    assert found.length_ratio == pytest.approx(300 / 800)
    rests = [250 / 600, 150 / 500, 200 / 500]
    assert found.length_ratio_se == pytest.approx(sqrt(2 / 3 * sum((r - fmean(rests)) ** 2 for r in rests)))
    assert found.auc == pytest.approx((0.5 - 0.7 + 0.9) / 3)
    assert found.auc_se == pytest.approx(stdev([0.5, -0.7, 0.9]) / sqrt(3))
    assert found.num_problems == 3


def test_the_errors_of_a_change_agree_with_a_bootstrap_over_problems():
    base, squeezed = simulated(random.Random(3), 120, 4, 1.0), simulated(random.Random(4), 120, 4, 0.6)
    found = change(base, squeezed, 400)
    pairs = [
        ([t for t in base if t.problem_id == f"p{i}"], [t for t in squeezed if t.problem_id == f"p{i}"]) for i in range(120)
    ]

    def accuracy(problems: list) -> float:
        return fmean(
            fmean(t.verdict == "correct" for t in after) - fmean(t.verdict == "correct" for t in before)
            for before, after in problems
        )

    def length_ratio(problems: list) -> float:
        return sum(t.num_tokens for _, after in problems for t in after) / sum(
            t.num_tokens for before, _ in problems for t in before
        )

    assert found.accuracy_se == pytest.approx(bootstrap_se(pairs, accuracy), rel=0.1)
    assert found.length_ratio == pytest.approx(length_ratio(pairs))
    assert found.length_ratio_se == pytest.approx(bootstrap_se(pairs, length_ratio), rel=0.1)


def test_pairing_makes_the_error_of_a_change_smaller_than_that_of_two_unpaired_models():
    base, squeezed = simulated(random.Random(3), 120, 8, 1.0), simulated(random.Random(4), 120, 8, 1.0)
    one, other = measure(base, 400), measure(squeezed, 400)
    paired = change(base, squeezed, 400).accuracy_se
    assert paired and one.accuracy_se and other.accuracy_se
    assert paired < 0.6 * sqrt(one.accuracy_se**2 + other.accuracy_se**2)


def test_a_model_against_itself_has_not_changed():
    assert asdict(change(BASE, BASE, 1000)) == {
        "accuracy": 0,
        "accuracy_se": 0,
        "accuracy_ci": None,
        "accuracy_p": 1,
        "length_ratio": 1,
        "length_ratio_se": 0,
        "length_ratio_ci": None,
        "length_p": 1,
        "auc": 0,
        "auc_se": 0,
        "auc_ci": None,
        "auc_p": 1,
        "num_problems": 3,
    }


def test_names_a_problem_that_only_one_model_has():
    with pytest.raises(TableError) as caught:
        change(BASE, [*SQUEEZED, trace("d", "correct", 1)], 1000)
    assert str(caught.value) == (
        "the base model has no traces of 1 of the problems, the first 'd'; a paired change needs the same problems, so "
        "evaluate both models on the same file"
    )
    with pytest.raises(TableError, match="the squeezed model has no traces of 1 of the problems, the first 'b'"):
        change(BASE, [own for own in SQUEEZED if own.problem_id != "b"], 1000)


def test_no_traces_and_empty_traces_are_errors_and_not_numbers():
    with pytest.raises(TableError, match="no evaluation traces to measure"):
        measure([], 1000)
    with pytest.raises(TableError, match="no evaluation traces to measure"):
        evaluation_json([], [], 1000)
    with pytest.raises(TableError, match="every trace of the base model has 0 tokens"):
        change([trace("a", "incorrect", 0)], [trace("a", "correct", 1)], 1000)


# The evaluation as JSON


def test_the_json_has_both_models_and_their_change_by_decoding():
    greedy = [trace(name, "correct", 50, decoding="greedy") for name in "abc"]
    found = evaluation_json([*BASE, *greedy], [*SQUEEZED, *greedy], 1000)
    assert found["base"] == {"greedy": asdict(measure(greedy, 1000)), "sampled": asdict(measure(BASE, 1000))}
    assert found["squeezed"]["sampled"] == asdict(measure(SQUEEZED, 1000))
    assert found["change"]["sampled"] == asdict(change(BASE, SQUEEZED, 1000))
    assert found["change"]["greedy"]["length_ratio"] == 1
    assert found["token_budget"] == 1000
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_is_not_known_is_null_in_the_json_and_not_nan():
    one = [trace("a", "incorrect", 10)]
    text = json.dumps(evaluation_json(one, one, 100), allow_nan=False)
    assert '"length_correct": null' in text and '"accuracy_se": null' in text


def test_a_decoding_that_only_one_model_has_is_an_error():
    greedy = [trace("a", "correct", 50, decoding="greedy")]
    with pytest.raises(TableError):
        evaluation_json([*BASE, *greedy], SQUEEZED, 1000)


# By difficulty


def test_bins_problems_by_the_base_models_pass_rate():
    rates = {"a": 0.0, "b": 0.25, "c": 0.26, "d": 0.75, "e": 0.99, "f": 1.0, "g": 1.0}
    traces = [trace(name, "correct" if name in "af" else "incorrect", 10 * i) for i, name in enumerate(rates)]
    bins = by_difficulty([*traces, trace("g", "correct", 100)], rates)
    assert [(b.label, b.num_problems, b.num_samples, b.accuracy, b.length) for b in bins] == [
        ("0", 1, 1, 1, 0),
        ("(0, 0.25]", 1, 1, 0, 10),
        ("(0.25, 0.5]", 1, 1, 0, 20),
        ("(0.5, 0.75]", 1, 1, 0, 30),
        ("(0.75, 1)", 1, 1, 0, 40),
        ("1", 2, 3, 0.75, 65),
    ]
    assert bins[0].accuracy_se is None
    assert bins[-1].accuracy_se == pytest.approx(0.25)  # sd of 1 and 0.5, over √2


def test_pass_rates_are_shares_of_correct_traces():
    assert pass_rates(BASE) == {"a": 0.5, "b": 1, "c": 0}


def test_a_bin_without_problems_is_left_out():
    assert [b.label for b in by_difficulty(SQUEEZED, pass_rates(BASE))] == ["0", "(0.25, 0.5]", "1"]


def test_names_a_problem_without_a_base_pass_rate():
    with pytest.raises(TableError, match="problem 'c' has no base pass rate"):
        by_difficulty(SQUEEZED, {"a": 1, "b": 1})


def test_sorts_problems_by_every_second_sample_and_measures_the_others():
    verdicts: dict[str, list[Verdict]] = {"a": ["correct", "incorrect", "correct"], "b": ["incorrect", "correct"]}
    traces = [trace(name, own[i], 10, sample_index=5 + i) for name, own in verdicts.items() for i in range(len(own))]
    apart = sorted_apart(traces[::-1])
    assert apart and apart.pass_rates == {"a": 1, "b": 0}
    assert [(t.problem_id, t.sample_index) for t in apart.measured] == [("a", 6), ("b", 6)]


def test_sorting_apart_shows_no_change_between_equal_models_where_sorting_by_the_measured_samples_does():
    def coins(seed: int) -> list[EvaluationTrace]:
        rng = random.Random(seed)
        return [trace(f"p{i}", rng.choice(["correct", "incorrect"]), 10, sample_index=s) for i in range(400) for s in range(4)]

    base, same = coins(1), coins(2)
    apart = sorted_apart(base)
    assert apart
    for rates, measured, fair in ((apart.pass_rates, apart.measured, True), (pass_rates(base), base, False)):
        gaps = [
            after.accuracy - before.accuracy
            for before, after in zip(by_difficulty(measured, rates), by_difficulty(same, rates), strict=True)
        ]
        assert (max(map(abs, gaps)) < 0.1) is fair


def test_the_same_model_on_the_same_random_streams_shows_no_change_at_any_difficulty():
    rng = random.Random(1)
    base = [trace(f"p{i}", rng.choice(["correct", "incorrect"]), 10, sample_index=s) for i in range(40) for s in range(4)]
    apart = sorted_apart(base)
    assert apart
    assert by_difficulty(measured_half(base), apart.pass_rates) == by_difficulty(apart.measured, apart.pass_rates)
    assert by_difficulty(base, apart.pass_rates) != by_difficulty(apart.measured, apart.pass_rates)


def test_a_problems_only_sample_is_measured():
    assert measured_half([trace("a", "correct", 1)]) == [trace("a", "correct", 1)]


def test_one_sample_each_cannot_be_sorted_apart():
    assert sorted_apart([*BASE, trace("d", "correct", 1)]) is None


def test_bins_problems_by_the_levels_of_the_data_set():
    levels = {"a": "Level 10", "b": "Level 2", "c": None}
    assert [(b.label, b.num_problems, b.accuracy, b.length) for b in by_level(BASE, levels)] == [
        ("Level 2", 1, 1, 300),
        ("Level 10", 1, 0.5, 200),
        ("no level", 1, 0, 300),
    ]
    assert by_level(BASE, {"a": None}) == []

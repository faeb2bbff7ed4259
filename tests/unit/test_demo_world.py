"""The demo's problems and traces: right by a second calculation, in disjoint splits, the same for the same seed."""

import random
import re
from collections.abc import Sequence

import pytest

from tokensqueeze.demo import world
from tokensqueeze.demo.world import (
    LARGEST_VALUE,
    DemoProblem,
    Operation,
    completion,
    draw_problem,
    drill,
    gold_trace,
    problems,
    split_of,
    verbose_trace,
)
from tokensqueeze.verifiers.math_answer import extract_answer

SPLITS = ("train", "dev", "test")
EXAMPLE = DemoProblem(
    "Tom", "apples", 12, ((Operation("*", 4),), (Operation("+", 38), Operation("-", 7)), (Operation("-", 20),))
)
_EQUATION = re.compile(r"(\d+(?: [+*-] \d+)+) = (\d+)")


def answer_in_words(question: str) -> int:
    """Read a question as a person would, from left to right."""
    value = int(re.findall(r"has (\d+)", question)[0])
    for verb, amount in re.findall(r"(buys|loses|gets) (\d+)", question):
        value = {"buys": value + int(amount), "loses": value - int(amount), "gets": value * int(amount)}[verb]
    return value


def equations(steps: Sequence[str]) -> list[tuple[str, int]]:
    return [(left, int(right)) for step in steps for left, right in _EQUATION.findall(step)]


def left_to_right(expression: str) -> int:
    first, *rest = expression.split()
    value = int(first)
    for operator, amount in zip(rest[::2], rest[1::2], strict=True):
        value = {"+": value + int(amount), "-": value - int(amount), "*": value * int(amount)}[operator]
    return value


def test_a_question_tells_the_steps_in_words_and_the_answer_follows() -> None:
    assert EXAMPLE.question == (
        "Tom has 12 apples. Tom now gets 4 times as many apples. Tom buys 38 apples and then loses 7. Tom loses 20 apples. "
        "How many apples?"
    )
    # 12 × 4 = 48, 48 + 38 - 7 = 79, 79 - 20 = 59
    assert EXAMPLE.answer == 59


def test_gold_traces_are_written_as_their_policy_says() -> None:
    assert gold_trace(EXAMPLE, "terse") == ["12 * 4 = 48.", "48 + 38 - 7 = 79.", "79 - 20 = 59."]
    worked = ["10 * 4 = 40, 2 * 4 = 8, 40 + 8 = 48.", "48 + 38 = 86, 86 - 7 = 79.", "79 - 20 = 59."]
    assert gold_trace(EXAMPLE, "worked") == worked
    assert gold_trace(EXAMPLE, "mixed") == ["12 * 4 = 48.", "48 + 38 = 86, 86 - 7 = 79.", "79 - 20 = 59."]


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_what_the_question_says_in_words(split: world.Split) -> None:
    for problem in problems(split, 150, seed=3):
        assert answer_in_words(problem.question) == problem.answer
        assert 0 <= problem.answer <= LARGEST_VALUE
        assert 1 <= len(problem.steps) <= 4


def test_splits_share_no_question_and_hold_their_shares() -> None:
    drawn = {split: {problem.question for problem in problems(split, 300, seed=1)} for split in SPLITS}
    assert all(len(questions) == 300 for questions in drawn.values())
    assert not drawn["train"] & drawn["dev"] and not drawn["train"] & drawn["test"] and not drawn["dev"] & drawn["test"]
    assert {split_of(question) for question in drawn["dev"]} == {"dev"}
    # One hash in eight each goes to dev and test: 4000 / 8 = 500, give or take five standard deviations of 21.
    buckets = [split_of(f"question {number}") for number in range(4000)]
    assert abs(buckets.count("dev") - 500) < 105 and abs(buckets.count("test") - 500) < 105


def test_the_same_seed_gives_the_same_problems_and_fewer_are_the_first_of_more() -> None:
    assert problems("train", 40, seed=5) == problems("train", 60, seed=5)[:40]
    assert problems("train", 40, seed=5) != problems("train", 40, seed=6)


def test_verbose_traces_are_right_but_for_the_slips_they_mend() -> None:
    rng = random.Random(0)
    mended = 0
    for _ in range(400):
        problem = draw_problem(rng, "train")
        steps = verbose_trace(rng, problem)
        wrong = [(left, right) for left, right in equations(steps) if left_to_right(left) != right]
        for _, slip in wrong:
            assert any(f"So {slip} was wrong and it is " in step for step in steps)
            mended += 1
        results = [right for _, right in equations(steps)]
        assert problem.answer in results
        assert all(step.strip() == step and "\n" not in step for step in steps)
    assert mended > 10


@pytest.mark.parametrize("policy", ["terse", "worked", "mixed"])
def test_gold_traces_hold_no_wrong_equation_and_lead_to_the_answer(policy: world.Policy) -> None:
    for problem in problems("train", 150, seed=2):
        found = equations(gold_trace(problem, policy))
        assert all(left_to_right(left) == right for left, right in found)
        assert found[-1][1] == problem.answer


def test_a_working_takes_one_operation_at_a_time() -> None:
    for problem in problems("train", 150, seed=2):
        assert all(len(left.split()) == 3 for left, _ in equations(gold_trace(problem, "worked")))


def test_drills_are_right() -> None:
    rng = random.Random(0)
    lines = [line for _ in range(60) for line in drill(rng)]
    assert len(lines) == 480
    assert all(left_to_right(left) == right for left, right in equations(lines))
    assert all(_EQUATION.search(line) for line in lines)


def test_a_completion_closes_its_thinking_and_boxes_the_answer() -> None:
    text = completion(["One.", "Two."], 59)
    assert text.split("</think>")[0] == "One.\n\nTwo.\n"
    assert extract_answer(text, "</think>") == "59"

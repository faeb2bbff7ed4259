"""What the parser of the demo's traces takes for a false equation or a lost value."""

import random

import pytest

from benchmarks.demo_audit import Audit, audit, equations
from tokensqueeze.demo import world

QUESTION = "Tom has 40 apples. Tom buys 7 apples and then loses 5. Tom now gets 2 times as many apples. How many apples?"
ORIGINAL = ["40 + 7 - 5 = 42.", "So now Tom has 42 apples.", "40 * 2 = 80, 2 * 2 = 4, 80 + 4 = 84."]


def audited(kept: list[str], answer: int = 84) -> Audit:
    return audit(question=QUESTION, original_steps=ORIGINAL, kept_steps=kept, answer=answer)


def test_a_trace_that_was_not_rewritten_is_sound() -> None:
    assert audited(ORIGINAL) == Audit([], [], [])


@pytest.mark.parametrize(
    ("text", "false"),
    [
        ("47 + 38 - 7 = 78.", []),
        ("47 + 38 - 7 = 68.", ["47 + 38 - 7 = 68"]),
        ("47 + 38 = 85, 85 - 7 = 79.", ["85 - 7 = 79"]),
        ("47 + 5 = 52 - 3 = 48", ["52 - 3 = 48"]),
        ("5 - 8 = -3, -3 + 4 = 1", []),
        ("2 + 3 * 4 = 20.", []),  # from left to right
        ("2 + 3 * 4 = 14.", ["2 + 3 * 4 = 14"]),
        ("Tom buys 5 and then loses 3. So now Tom has 9 apples.", []),
    ],
)
def test_equations_are_evaluated_from_left_to_right(text: str, false: list[str]) -> None:
    assert [str(equation) for equation in equations(text) if not equation.is_true] == false


def test_false_equations_are_reported_where_they_are_kept_alone() -> None:
    found = audit(
        question=QUESTION,
        original_steps=["40 + 7 - 5 = 43.", "43 * 2 = 86."],
        kept_steps=["40 + 7 - 5 = 42.", "43 * 2 = 85."],
        answer=86,
    )
    assert found.false_equations == ["43 * 2 = 85"]


@pytest.mark.parametrize(
    ("later", "standing"),
    [
        ("Hmm, that looks wrong. 40 + 7 = 47, 47 - 5 = 42. So 43 was wrong and it is 42.", False),
        ("Wait, let me check that. 40 + 7 = 47, 47 - 5 = 43. Yes, 43 is correct.", True),
        ("So now Tom has 42 apples.", True),  # says it, but does not work it out
        ("42 * 2 = 84.", True),
    ],
)
def test_a_false_equation_stands_unless_a_later_step_works_it_out_anew(later: str, standing: bool) -> None:
    found = audit(question=QUESTION, original_steps=ORIGINAL[:2], kept_steps=["40 + 7 - 5 = 43.", later], answer=42)
    assert found.false_equations[0] == "40 + 7 - 5 = 43"
    assert ("40 + 7 - 5 = 43" in found.standing_equations) == standing


def test_what_mends_a_false_equation_comes_after_it() -> None:
    kept = ["40 + 7 = 47, 47 - 5 = 42. So 40 + 7 - 5 = 43.", "So."]
    found = audit(question=QUESTION, original_steps=ORIGINAL[:2], kept_steps=kept, answer=42)
    assert found.standing_equations == ["40 + 7 - 5 = 43"]


def test_a_value_that_a_step_starts_from_is_lost_once_no_kept_text_states_it() -> None:
    assert audited(["Okay.", "Hmm.", "42 * 2 = 84."]).lost_values == [42]
    assert audited(["Okay.", "Hmm.", "There are 42 now, so I multiply by 2. So 42 * 2 = 84."]).lost_values == [42]
    assert audited(["Okay.", "So now Tom has 42 apples.", "42 * 2 = 84."]).lost_values == []


def test_a_multiplication_done_tens_first_starts_from_the_whole_value() -> None:
    # 40 and 2, its parts, are stated nowhere; 42 is what it needs.
    assert audited(["40 + 7 - 5 = 42.", "Hmm.", "40 * 2 = 80, 2 * 2 = 4, 80 + 4 = 84."]).lost_values == []
    assert audited(["Okay.", "Hmm.", "40 * 2 = 80, 2 * 2 = 4, 80 + 4 = 84."]).lost_values == [42]


def test_a_value_is_lost_once_however_often_it_is_used() -> None:
    kept = ["Okay.", "Wait, let me check that. 42 * 2 = 84. Yes, 84 is correct.", "42 * 2 = 84."]
    assert audited(kept).lost_values == [42]


def test_the_amount_of_an_operation_states_no_value() -> None:
    original = ["40 + 7 = 47.", "47 - 40 = 7.", "7 * 2 = 14."]
    # 7 is an amount in the first step, and the running value only in the second.
    found = audit(question=QUESTION, original_steps=original, kept_steps=["40 + 7 = 47.", "So.", "7 * 2 = 14."], answer=14)
    assert found.lost_values == [7]


def test_a_value_that_the_original_did_not_state_either_is_not_lost() -> None:
    assert audited(["40 + 7 - 5 = 42.", "Hmm.", "43 * 2 = 84."]) == Audit(["43 * 2 = 84"], ["43 * 2 = 84"], [])


def test_an_answer_that_no_kept_step_comes_to_is_lost() -> None:
    assert audited(["40 + 7 - 5 = 42.", "Hmm.", "So."]).lost_values == [84]


def test_the_worlds_own_traces_lose_nothing_and_are_false_only_where_they_mend_it() -> None:
    rng = random.Random(3)
    for problem in world.problems("train", 300, seed=5):
        steps = world.verbose_trace(rng, problem)
        # Held against a text that states every number there is, only what the trace itself states keeps a value.
        everything = ["; ".join(f"it is {value}" for value in range(-200, 500))] * len(steps)
        found = audit(question=problem.question, original_steps=everything, kept_steps=steps, answer=problem.answer)
        mended = [step for step in steps if " was wrong and it is " in step]
        assert found.lost_values == found.standing_equations == [], (problem, steps, found)
        # A wrong result stands in one step, in its last equation.
        assert len(found.false_equations) == len(mended), (problem, steps, found)

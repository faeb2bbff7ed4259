"""Which steps take back the one before them, and which only look at it again."""

import random
from dataclasses import asdict
from itertools import pairwise

import pytest

from tokensqueeze.config import EngineSettings, KLBound, Reliable
from tokensqueeze.demo.world import draw_problem, verbose_trace
from tokensqueeze.engines.checkpoint import demo_model_dir
from tokensqueeze.schema import Problem, SelectedTrace
from tokensqueeze.stages.model_source import ModelSource
from tokensqueeze.stages.propose_steps import ProposeSteps
from tokensqueeze.traces.corrections import corrected_units, takes_back

WRONG = "47 + 38 - 7 = 68."

TAKEN_BACK = [
    (WRONG, "Hmm, that looks wrong. 47 + 38 = 85, 85 - 7 = 78. So 68 was wrong and it is 78."),
    (WRONG, "Wait, let me check that. 47 + 38 = 85, 85 - 7 = 78."),
    (WRONG, "No, it should be 78."),
    (WRONG, "Oh wait, I forgot to carry the one: 78."),
    (WRONG, "Actually, 47 + 38 = 85, so it's 78."),
    (WRONG, "That's not right. Let me try again: 78."),
    (WRONG, "That isn’t right, the sum is 85."),
    ("So x = -3. This is still not correct. We need to go back.", "Let's redo the equation: 3x = 9, so x = 3."),
    ("The count is 12.", "However, this is not the correct count, because order matters."),
    ("5 + 5 = 11", "Let me recalculate. 5 + 5 = 10"),
]
NOT_TAKEN_BACK = [
    # Confirmed.
    ("47 + 38 - 7 = 78.", "Wait, let me check that. 47 + 38 = 85, 85 - 7 = 78. Yes, 78 is correct."),
    ("47 + 38 - 7 = 78.", "Hmm, no mistake: nothing is wrong here, it is 78."),
    ("47 + 38 - 7 = 78.", "Wait, it should be 78. Yes."),
    ("47 + 38 - 7 = 78.", "Let me make sure that I made no mistake. 85 - 7 = 78."),
    # It was mended within the step before already.
    ("So 46 was wrong and it is 55.", "Let me verify the whole thing again. 6 + 49 = 55. Yes, 55 is correct."),
    # It goes on, with numbers of its own.
    ("47 + 38 - 7 = 78.", "Wait, Tom then buys 5. 78 + 5 = 83."),
    ("47 + 38 - 7 = 78.", "Then, 78 + 5 = 83."),
    ("There are 4 cases.", "However, 2 of them are the same, so 3 remain."),
    ("The terms are 1, 2, 4, 8 and so on.", "This is a geometric series with ratio 2, and it sums to 15."),
    # What is wrong is not what the step before says.
    ("There are 3 doors.", "Now we count the wrong guesses: 2."),
    ("No number so far.", "Wait, there are 7."),
]


@pytest.mark.parametrize(("before", "text"), TAKEN_BACK)
def test_doubt_with_a_sign_that_something_changed_takes_the_step_back(before: str, text: str) -> None:
    assert takes_back(text, before)


@pytest.mark.parametrize(("before", "text"), NOT_TAKEN_BACK)
def test_a_check_that_confirms_and_a_step_that_goes_on_take_nothing_back(before: str, text: str) -> None:
    assert not takes_back(text, before)


def test_wrong_and_wrong_again_and_right_are_one_unit() -> None:
    steps = [
        "Let me go step by step.",
        WRONG,
        "Wait, let me check that. 47 + 38 = 86, 86 - 7 = 79.",
        "Hmm, that looks wrong. 47 + 38 = 85, 85 - 7 = 78.",
        "Wait, let me check that. 47 + 38 = 85, 85 - 7 = 78. Yes, 78 is correct.",
        "78 + 5 = 83.",
    ]
    assert corrected_units(steps) == [range(1), range(1, 4), range(4, 5), range(5, 6)]


def test_the_first_step_has_nothing_to_take_back() -> None:
    assert corrected_units(["Wait, that is wrong. 1 + 1 = 2."]) == [range(1)]
    assert corrected_units([]) == []


def test_in_the_demos_traces_just_the_mended_steps_are_found() -> None:
    rng = random.Random(7)
    found = mended = 0
    for _ in range(600):
        steps = verbose_trace(rng, draw_problem(rng, "train"))
        # The world's own phrase for what it got wrong on purpose.
        expected = [" was wrong and it is " in step for step in steps]
        assert [takes_back(step, before) for before, step in pairwise(steps)] == expected[1:]
        found += len(steps) - len(corrected_units(steps))
        mended += sum(expected)
    assert found == mended > 20


def test_a_step_and_its_correction_are_proposed_as_one_where_the_settings_say_so() -> None:
    source = ModelSource(demo_model_dir(), EngineSettings(), "float32", "</think>")
    steps = ["Let me see.", WRONG, "Hmm, that looks wrong. So 68 was wrong and it is 78.", "So 78."]
    text = "\n\n".join(steps) + "\n</think>\n\nThe answer is \\boxed{78}."
    token_ids = source.tokens.encode(text)
    plain = source.trace("p", 0, token_ids, "stop")
    trace = SelectedTrace(
        **asdict(plain),
        verdict="correct",
        extracted_answer="78",
        verdict_cause=None,
        thinking_tokens=0,
        answer_tokens=0,
        rank=0,
        num_correct=1,
        num_sampled=1,
    )
    problem = Problem("p", "", "78", "", source.tokens.encode("Tom has 47 apples."))

    def proposed(rewriter: KLBound | Reliable) -> list[str]:
        rows = ProposeSteps(source, rewriter)({"problems": [problem], "selected_traces": [trace]}).rows
        assert [(row.step_index, row.num_steps) for row in rows] == [(index, len(rows)) for index in range(len(rows))]
        assert all(source.tokens.text(token_ids[row.token_start : row.token_end]) == row.step_text for row in rows)
        # A draw still ends at the first blank line.
        assert not any("\n\n" in candidate.text for row in rows for candidate in row.candidates)
        return [row.step_text for row in rows]

    corrected = Reliable(num_candidates=2, max_step_tokens=40, unit="corrected_step")
    assert proposed(corrected) == [steps[0], f"{WRONG}\n\n{steps[2]}", steps[3]]
    assert proposed(Reliable(num_candidates=2, max_step_tokens=40, unit="step")) == steps
    assert proposed(KLBound(num_candidates=2)) == steps

"""Letters, option texts and both, as MMLU-Pro (ten options) and GPQA (four) ask for them."""

import json

import pytest

from tokensqueeze.config import VerifierSettings
from tokensqueeze.schema import Verdict
from tokensqueeze.verifiers.answers import AnswerVerifier
from tokensqueeze.verifiers.multiple_choice import ChoiceVerifier
from tokensqueeze.verifiers.verdict import Answered, Judgement

CITIES = json.dumps({"letter": "B", "options": ["Rome", "Paris", "New York", "Oslo"]})
NUMBERS = json.dumps({"letter": "C", "options": ["5", "0.25", "1/2", "10^3"]})
TEN = json.dumps({"letter": "J", "options": [f"number {i}" for i in range(10)]})
TWICE = json.dumps({"letter": "A", "options": ["the same", "The same.", "other"]})
LETTERS = json.dumps({"letter": "A", "options": ["B", "A", "vitamin C"]})


def judge(text: str, gold: str, *forms: str) -> Judgement:
    settings = VerifierSettings.model_validate({"answer_forms": list(forms) or ["boxed"]})
    with ChoiceVerifier(think_end="</think>", answer_forms=settings.answer_forms) as verifier:
        (judgement,) = verifier.judge([Answered(text, gold, "stop", "choice")])
    return judgement


@pytest.mark.parametrize(
    ("gold", "answer", "verdict", "cause"),
    [
        ("B", "B", "correct", None),
        ("B", "b", "correct", None),
        ("b", "B", "correct", None),
        ("B", "(B)", "correct", None),
        ("B", "\\text{B}", "correct", None),
        ("B", "\\textbf{(B)}", "correct", None),
        ("B", "\\mathrm{B}", "correct", None),
        ("B", "B.", "correct", None),
        ("B", "\uff22", "correct", None),
        ("B", "$B$", "correct", None),
        ("B", "option B", "correct", None),
        ("B", "Option (B)", "correct", None),
        ("B", "B) Paris", "correct", None),
        ("B", "\\textbf{(B) } 5", "correct", None),
        ("B", "C", "incorrect", None),
        ("B", "B or C", "incorrect", None),
        ("B", "(B) or (C)", "incorrect", None),
        ("B", "B, C", "incorrect", None),
        ("B", "A and B", "incorrect", None),
        ("B", "BC", "incorrect", None),
        ("B", "Paris", "incorrect", None),
        ("B", "8", "incorrect", None),
        ("B", "\u0412", "incorrect", None),  # the Cyrillic letter Ve
        (CITIES, "B", "correct", None),
        (CITIES, "B) Paris", "correct", None),
        (CITIES, "(B) \\text{Paris}", "correct", None),
        (CITIES, "B: paris.", "correct", None),
        (CITIES, "Paris", "correct", None),
        (CITIES, "\\text{Paris}", "correct", None),
        (CITIES, "PARIS ", "correct", None),
        (CITIES, "B) Paris, on the Seine", "correct", None),
        (CITIES, "Rome", "incorrect", None),
        (CITIES, "New  York", "incorrect", None),
        (CITIES, "Paris or Rome", "incorrect", None),
        (CITIES, "(B) or (C)", "incorrect", None),
        (CITIES, "E", "incorrect", None),
        (CITIES, "B) Rome", "incorrect", "contradictory"),
        (CITIES, "A) Paris", "incorrect", "contradictory"),
        (CITIES, "B) Parisian", "correct", None),
        (CITIES, "B: it is the capital", "correct", None),
        (CITIES, "B (Paris)", "correct", None),
        (CITIES, "B (Rome)", "incorrect", "contradictory"),
        (CITIES, "B - Paris", "correct", None),
        (CITIES, "B - Oslo", "incorrect", "contradictory"),
        (CITIES, "B - C", "incorrect", None),
        (CITIES, "A: it is the capital", "incorrect", None),
        (NUMBERS, "C", "correct", None),
        (NUMBERS, "\\frac{1}{2}", "correct", None),
        (NUMBERS, "0.5", "correct", None),
        (NUMBERS, "(C) \\dfrac12", "correct", None),
        (NUMBERS, "0.25", "incorrect", None),
        (NUMBERS, "2", "incorrect", None),
        (NUMBERS, "C) 0.25", "incorrect", "contradictory"),
        (TEN, "J", "correct", None),
        (TEN, "number 9", "correct", None),
        (TEN, "I", "incorrect", None),
        (TEN, "K", "incorrect", None),
        (TWICE, "A", "correct", None),
        (TWICE, "the same", "incorrect", None),
        (LETTERS, "A", "correct", None),
        (LETTERS, "B", "incorrect", None),
        ('{"letter": "B"}', "B", "correct", None),
        ("E2", "B", "unverifiable", "gold"),
        ("", "B", "unverifiable", "gold"),
        ("{", "B", "unverifiable", "gold"),
        ("[1]", "B", "unverifiable", "gold"),
        ('{"letter": "C", "options": ["x", "y"]}', "B", "unverifiable", "gold"),
        ('{"letter": "B", "options": [1, 2]}', "B", "unverifiable", "gold"),
        ('{"letter": "", "options": ["x"]}', "B", "unverifiable", "gold"),
    ],
)
def test_judges_letters_and_option_texts(gold: str, answer: str, verdict: Verdict, cause: str | None):
    assert judge(f"<think>B? C?</think> \\boxed{{{answer}}}", gold) == Judgement(verdict, answer.strip(), cause)


@pytest.mark.parametrize(
    ("text", "answer", "verdict"),
    [
        ("The answer is (B).", "B", "correct"),
        ("the answer is B", "B", "correct"),
        ("So the correct answer is: **B**", "B", "correct"),
        ("Therefore, the answer is (B) Paris.", "B) Paris", "correct"),
        ("The answer is (B), because the Seine flows through it.\nThat is well known.", "B", "correct"),
        ("The answer is (B) Paris. Rome is in Italy.", "B) Paris", "correct"),
        ("The answer is A. No, wait.\nThe answer is $\\textbf{(B)}$", "B", "correct"),
        ("The answer is B. It lies on the Seine.", "B", "correct"),
        ("The answer is (A). No, wait. The answer is (B).", "B", "correct"),
        ("The answer is (B), Paris!", "B) Paris", "correct"),
        ("Final answer: B", "B", "correct"),
        ("I choose option B.", "B", "correct"),
        ("It lies on the Seine.\n\nB", "B", "correct"),
        ("It lies on the Seine.\n\n**(B)**\n", "B", "correct"),
        ("The answer is (B) Rome.", "B) Rome", "incorrect"),
        ("The answer is B or C.", "B) or C", "incorrect"),
        ("The answer is C.", "C", "incorrect"),
        ("The answer is a city in France.", None, "no_answer"),
        ("B is Paris. I don't know.", None, "no_answer"),
        ("", None, "no_answer"),
    ],
)
def test_finds_a_closing_phrase_or_a_letter_on_the_last_line(text: str, answer: str | None, verdict: Verdict):
    judgement = judge(f"<think>The answer is C</think>{text}", CITIES, "boxed", "choice_phrase")
    assert (judgement.verdict, judgement.extracted_answer) == (verdict, answer)
    assert (judgement.cause == "no_answer_found") is (answer is None)


def test_a_box_goes_before_a_phrase_and_a_tag_holds_either():
    assert judge("\\boxed{B} The answer is C", "B", "boxed", "choice_phrase").verdict == "correct"
    assert judge("<answer>(B)</answer> or C", "B", "answer_tag").verdict == "correct"
    assert judge("It is B", "B") == Judgement("no_answer", None, "no_boxed")


def test_a_truncated_choice_is_incorrect():
    with ChoiceVerifier(think_end="</think>") as verifier:
        assert verifier.judge([Answered("\\boxed{B}", "B", "length", "choice")]) == [Judgement("incorrect", None, "truncated")]


def test_the_verifier_of_a_run_sends_choices_here():
    with AnswerVerifier(VerifierSettings(), think_end="</think>") as verifier:
        judgements = verifier.judge([Answered("\\boxed{Paris}", CITIES, "stop", "choice"), Answered("\\boxed{7}", "7", "stop")])
    assert [judgement.verdict for judgement in judgements] == ["correct", "correct"]


def test_long_and_broken_answers_get_a_verdict():
    for answer in ("B" * 200_000, "(" * 9_000, "option " * 1_000, "\ud800", "\x00", "(B) " + ", A" * 3_000):
        assert judge(f"\\boxed{{{answer}}}", CITIES, "boxed", "choice_phrase").verdict in ("incorrect", "no_answer")
        assert judge(answer, CITIES, "choice_phrase").verdict in ("incorrect", "no_answer")

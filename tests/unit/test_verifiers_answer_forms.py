"""Each form of giving an answer, and the order in which they are looked for."""

import time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensqueeze.config import AnswerForm, VerifierSettings
from tokensqueeze.verifiers.answer_forms import extract_answer
from tokensqueeze.verifiers.math_answer import MathVerifier
from tokensqueeze.verifiers.verdict import Answered, Judgement


def extract(text: str, *forms: str) -> str | None:
    return extract_answer(text, "</think>", VerifierSettings.model_validate({"answer_forms": list(forms)}).answer_forms)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>5</answer>", "5"),
        ("<answer> 5\n</answer> and <ANSWER>6</ANSWER>", "6"),
        ("<answer>5</answer><answer></answer>", "5"),
        ("<answer>5</answer><answer>6", "5"),
        ("<answer>4 <answer>5</answer>", "5"),
        ("<answer>It is \\boxed{5}.</answer>", "5"),
        ("<answer>5</answer></answer>", "5"),
        ("</answer>5<answer>", None),
        ("<answer></answer>", None),
        ("<answer>4</answer></think>5", None),
        ("\\boxed{5}", None),
        ("", None),
    ],
)
def test_finds_the_last_filled_answer_tag(text: str, answer: str | None):
    assert extract(text, "answer_tag") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("8 + 10 = <<8+10=18>>18\n#### 18", "18"),
        ("#### 1,234,567", "1234567"),
        ("#### $18.50", "18.50"),
        ("#### -5", "-5"),
        ("#### (1, 2)", "(1, 2)"),
        ("####7", "7"),
        ("#### 7\nThat is all.", "7"),
        ("#### 6\n#### 7", "7"),
        ("#### 6\n####\n", "6"),
        ("##### 7", "7"),
        ("### 7", None),
        ("#### ", None),
        ("7", None),
    ],
)
def test_finds_what_follows_the_last_four_hashes(text: str, answer: str | None):
    assert extract(text, "hash") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has 18 apples.", "18"),
        ("First 3, then 18.", "18"),
        ("It costs $18.50.", "18.50"),
        ("It is -5", "-5"),
        ("It is \u22125.", "-5"),
        ("It is -$5.", "-5"),
        ("5-3", "3"),
        ("x = 7.", "7"),
        ("In all 1,234,567 people", "1234567"),
        ("1,2,3", "3"),
        ("1234,567", "567"),
        ("either 3, 4, or 5, I think", "5"),
        ("So 3/4 of it", "3/4"),
        ("So 3 / 4 of it", "3 / 4"),
        ("So \\frac{3}{4} of it", "\\frac{3}{4}"),
        ("It is 50%.", "50%"),
        ("It is 50\\%", "50%"),
        ("It is .5", ".5"),
        ("5cm", "5"),
        ("Take H2 of the 7 things", "7"),
        ("H2", None),
        ("\\boxed{12}", "12"),
        ("none", None),
        ("", None),
    ],
)
def test_finds_the_last_plain_number(text: str, answer: str | None):
    assert extract(text, "last_number") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed 9", "9"),
        ("\\boxed9.", "9"),
        ("\\fbox -3.5,", "-3.5"),
        ("\\boxed{8} or \\boxed 9", "9"),
        ("\\boxed 9 or \\boxed{8}", "8"),
        ("\\boxed{\\boxed 9}", "9"),
        ("put it into \\boxed form", None),
        ("\\boxed $9$", None),
    ],
)
def test_finds_a_number_in_a_box_without_braces(text: str, answer: str | None):
    assert extract(text, "boxed") == answer


def test_the_first_form_that_finds_something_counts():
    text = "<answer>1</answer> \\boxed{2}\n#### 3\n4"
    assert extract(text, "boxed", "hash") == "2"
    assert extract(text, "hash", "boxed") == "3"
    assert extract(text, "answer_tag", "last_number") == "1"
    assert extract(text, "last_number", "boxed") == "4"
    assert extract("no box, 4", "boxed", "answer_tag", "hash", "last_number") == "4"


def test_nothing_found_says_so_by_the_forms_asked_for():
    item = Answered("I give up.", "5", "stop")
    with MathVerifier(timeout_seconds=5, think_end="</think>") as boxed:
        assert boxed.judge([item]) == [Judgement("no_answer", None, "no_boxed")]
    with MathVerifier(timeout_seconds=5, think_end="</think>", answer_forms=["boxed", "last_number"]) as any_form:
        assert any_form.judge([item]) == [Judgement("no_answer", None, "no_answer_found")]
        assert any_form.judge([Answered("I say 5.", "5", "stop")]) == [Judgement("correct", "5", None)]


@given(st.integers(), st.sampled_from(["hash", "last_number", "boxed", "answer_tag"]))
def test_every_form_gives_back_an_integer(number: int, form: str):
    text = {"hash": "#### {:,}", "last_number": "It is {:,}.", "boxed": "\\boxed{{{}}}", "answer_tag": "<answer>{}</answer>"}[
        form
    ]
    assert extract(text.format(number), form) == str(number)


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "\\boxed ", "<answer>", "#### ", "1,", "111,", "1 / ", "-$", "answer is ", "{", " ", "9"]
)
def test_a_model_that_loops_costs_no_time(piece: str):
    start = time.perf_counter()
    for form in get_args(AnswerForm):
        extract(piece * 100_000, form)
    assert time.perf_counter() - start < 10

"""Where a completion's answer is, and which answers need no mathematics."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensqueeze.verifiers.boxed import last_boxed
from tokensqueeze.verifiers.math_answer import extract_answer, same_plainly


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>5</think>\n\nThe answer is \\boxed{5}.", "5"),
        ("<think>Perhaps \\boxed{4}</think> It is \\boxed{5}", "5"),
        ("<think>Perhaps \\boxed{4}</think> It is 5", None),
        ("a</think> \\boxed{1} b</think> \\boxed{2}", "2"),
        ("a</think> \\boxed{1} b</think> no", None),
        ("never stops thinking, \\boxed{7}", "7"),
        ("</think>\\boxed{1}, no, \\boxed{2}", "2"),
        ("</think>\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("</think>\\boxed {3}", "3"),
        ("</think>\\fbox{ 3 }", "3"),
        ("</think>\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("</think>\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right."),
        ("</think>\\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
        ("</think>\\boxed{\\boxed{6}}", "6"),
        ("</think>The box is \\boxed{8}; write it as \\boxed{}", "8"),
        ("</think>\\boxed{8} and \\boxed{9", "8"),
        ("</think>} \\boxed{8}", "8"),
        ("</think>{ \\boxed{8}", "8"),
        ("</think>\\boxed{\n}", None),
        ("</think>\\boxed", None),
        ("</think>\\boxedx{8}", None),
        ("", None),
    ],
)
def test_finds_the_last_closed_box_after_the_thinking(completion: str, answer: str | None):
    assert extract_answer(completion, "</think>") == answer


def test_the_end_of_thinking_is_a_setting():
    assert extract_answer("\\boxed{1}<|done|>\\boxed{2}</think>", "<|done|>") == "2"


@given(st.recursive(st.text("ab\\ ", max_size=4).map(lambda t: t.replace("\\", "\\,")), lambda s: s.map("{{{}}}".format)))
def test_a_box_gives_back_what_was_put_into_it(content: str):
    assert last_boxed(f"so \\boxed{{{content}}}.") == (content.strip() or None)


def test_a_hundred_thousand_open_boxes_take_no_time():
    start = time.perf_counter()
    assert last_boxed("\\boxed{" * 100_000 + "3" + "}" * 50_000) == "3"
    assert last_boxed("\\boxed{3" * 100_000) is None
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("72", "72", True),
        ("72", " 72 ", True),
        ("72", "+72", True),
        ("72", "0072", True),
        ("0", "-0", True),
        ("72", "73", False),
        ("-72", "72", False),
        ("\\frac{1}{2}", "\\frac{1}{2}", True),
        ("\\frac{1}{2}", "0.5", None),
        ("1,080", "1080", None),
        ("72", "72.0", None),
        ("Evelyn", "Eve", None),
        ("7", "٧", None),
    ],
)
def test_text_and_integers_are_compared_without_mathematics(gold: str, answer: str, same: bool | None):
    assert same_plainly(gold, answer) is same


def test_an_integer_of_any_length_raises_nothing():
    assert same_plainly("1", "1" * 10_000) is None


@given(st.integers(), st.integers())
def test_plain_integers_agree_exactly_when_the_numbers_do(gold: int, answer: int):
    assert same_plainly(str(gold), f"{answer:+d}") is (gold == answer)

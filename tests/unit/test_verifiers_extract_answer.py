"""Where a completion's answer is, and which answers need no mathematics."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokensqueeze.verifiers.answer_forms import extract_answer
from tokensqueeze.verifiers.boxed import last_boxed
from tokensqueeze.verifiers.written_math import readable, same_plainly


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
        ("\\frac{1}{2}", "0.5", True),
        ("\\frac{1}{2}", "2/4", True),
        ("\\frac12", "-\\dfrac{1}{2}", False),
        ("-1/2", "\\frac{-1}{2}", True),
        ("1,080", "1080", True),
        ("1,08", "108", None),
        ("0,111", "111", None),
        ("72", "72.0", True),
        ("72", "72.1", False),
        (".5", "0.50", True),
        ("1/0", "1", None),
        ("1/0", "1/0", True),
        ("\\frac13", "0.\\overline{3}", True),
        ("0.1\\overline{6}", "1/6", True),
        ("\\frac13", "0.333333", None),  # near: Math-Verify rounds
        ("\\frac13", "0.3333", False),
        ("0", "0.0000001", False),
        ("50", "50\\%", None),
        ("Evelyn", "Eve", None),
        ("7", "\u0667", None),
    ],
)
def test_text_and_integers_are_compared_without_mathematics(gold: str, answer: str, same: bool | None):
    assert same_plainly(gold, answer) is same


def test_an_integer_of_any_length_raises_nothing():
    assert same_plainly("1", "1" * 10_000) is False
    assert same_plainly("-00" + "1" * 10_000, "-" + "1" * 10_000) is True
    assert same_plainly("1", "1." + "1" * 10_000) is None


@given(st.integers(), st.integers())
def test_plain_integers_agree_exactly_when_the_numbers_do(gold: int, answer: int):
    assert same_plainly(str(gold), f"{answer:+d}") is (gold == answer)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\uff11\uff12", "12"),  # full-width digits
        ("\u0661\u0662", "12"),  # Arabic-Indic digits
        ("\u0661\u066b\u0662", "1.2"),
        ("\U0001d7cf\U0001d7d0", "12"),  # bold mathematical digits
        ("\u22125", "-5"),
        ("\u20135", "-5"),
        ("12\u200b3", "123"),  # a space of no width
        ("1\u00a0000", "1000"),
        ("5\u00a0cm", "5 cm"),
        ("3 \u00d7 4 \u00f7 2", "3 \\times 4 \\div 2"),
        ("2\u221a3\u03c0", "2\\sqrt 3\\pi"),
        ("2\u00bd", "2\\frac{1}{2}"),
        ("x\u207b\u00b9\u00b2", "x^{-12}"),
        ("a\u2081", "a_{1}"),
        ("90\u00b0", "90^\\circ"),
        ("1\u043e", "1\u043e"),  # the Cyrillic o is no zero
        ("5\x00", "5\ufffd"),
        ("\ud800", "\ufffd"),
        ("\\$18.90", "18.90"),
        ("$\\frac12$.", "\\frac12"),
        ("\\(5\\)", "5"),
        ("**5**", "5"),
        ("1{,}000", "1000"),
        ("11,\\! 111,\\! 100", "11111100"),
        ("1\\,000\\,000", "1000000"),
        ("\\left( 3, 4 \\right)", "( 3, 4 )"),
        ("\\left\\{1 \\right.", "\\left\\{1 \\right."),
        ("$1$ and $2$", "1 and 2"),
        ("", ""),
    ],
)
def test_reads_characters_that_look_alike_and_leaves_out_what_surrounds_an_answer(text: str, plain: str):
    assert readable(text) == plain
    assert readable(plain) == plain


@given(st.text())
def test_a_readable_text_has_nothing_that_a_table_could_not_hold(text: str):
    readable(text).encode()

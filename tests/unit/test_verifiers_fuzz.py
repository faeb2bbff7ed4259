"""Whatever a model writes gets a verdict in its time: random text, random LaTeX, bombs; and nothing is left behind.

One pool of children serves the whole file, so that a test pays for no start but its own kills.
"""

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

from benchmarks.verifier_throughput import PAIRS, read_pairs, soak
from tokensqueeze.config import AnswerForm
from tokensqueeze.schema import Verdict
from tokensqueeze.verifiers.answer_forms import extract_answer
from tokensqueeze.verifiers.latex_reader import read_latex
from tokensqueeze.verifiers.math_answer import MathVerifier
from tokensqueeze.verifiers.verdict import Answered
from tokensqueeze.verifiers.written_math import readable, same_plainly

SECONDS = 0.5
SLACK = 20.0
"""A child's start and a busy machine; far less than a stalled one would take."""
FORMS: list[AnswerForm] = ["boxed", "answer_tag", "hash", "last_number"]

fuzz = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
texts = st.text(st.characters(exclude_categories=()), max_size=60)  # lone surrogates and NUL among them


def latex_of(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(parts, parts)
    return st.one_of(
        parts.map("{{{}}}".format),
        parts.map("\\sqrt{{{}}}".format),
        parts.map("\\text{{{}}}".format),
        parts.map("\\left({}\\right]".format),
        pairs.map(lambda pair: f"\\frac{{{pair[0]}}}{{{pair[1]}}}"),
        pairs.map(lambda pair: f"{pair[0]}^{{{pair[1]}}}"),
        pairs.map(lambda pair: f"({pair[0]},{pair[1]})"),
        pairs.map("".join),
    )


atoms = st.sampled_from(
    [*"0123456789", "x", "+", "-", "=", ",", "!", "%", "_", "^", "{", "}", "&", "\\", "\\pi", "\\infty", "\\cup", "\\in", "<"]
)
latex = st.recursive(atoms, latex_of, max_leaves=12)


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(timeout_seconds=SECONDS, think_end="</think>", answer_forms=FORMS, processes=2) as verifier:
        verifier.judge([Answered("\\boxed{x+1}", "1+x", "stop")])
        yield verifier


def judge_in_time(verifier: MathVerifier, items: list[Answered]) -> None:
    start = time.perf_counter()
    judgements = verifier.judge(items)
    assert time.perf_counter() - start < len(items) * SECONDS + SLACK
    assert len(judgements) == len(items)
    for judgement in judgements:
        assert judgement.verdict in get_args(Verdict)
        assert (judgement.extracted_answer or "").encode() is not None
        assert (judgement.verdict == "unverifiable") <= (judgement.cause is not None)


@fuzz
@given(gold=texts, answer=texts)
def test_random_text_gets_a_verdict_in_its_time(verifier: MathVerifier, gold: str, answer: str):
    judge_in_time(verifier, [Answered(f"<think>…</think>\\boxed{{{answer}}}", gold, "stop"), Answered(answer, gold, "stop")])


@fuzz
@given(gold=latex, answer=latex)
def test_random_latex_gets_a_verdict_in_its_time(verifier: MathVerifier, gold: str, answer: str):
    judge_in_time(
        verifier, [Answered(f"\\boxed{{{answer}}}", gold, "stop"), Answered(f"\\boxed{{{answer}}}", "\\frac{1}{2}", "stop")]
    )


pieces = st.sampled_from(
    [
        "\\boxed{",
        "\\boxed 9",
        "}",
        "{",
        "<answer>",
        "</answer>",
        "</think>",
        "####",
        "\n",
        "7",
        "-",
        ",",
        "/",
        "$",
        "the answer is ",
        "(B)",
        "\\frac{1}{2}",
    ]
)


@fuzz
@given(st.lists(st.one_of(pieces, texts), max_size=30).map("".join))
def test_a_random_completion_is_searched_in_every_form_and_judged(verifier: MathVerifier, completion: str):
    for form in get_args(AnswerForm):
        found = extract_answer(completion, "</think>", [form])
        assert found is None or found.strip()
    judge_in_time(verifier, [Answered(completion, "7", "stop")])


@pytest.mark.parametrize(
    "bomb",
    [
        "{" * 100_000 + "}" * 100_000,
        "{" * 3_000 + "1" + "}" * 3_000,
        "\\frac{" * 800 + "1" + "}{2}" * 800,
        "\\sqrt{" * 500 + "2" + "}" * 500,
        "10^{10^{10}}",
        "9^{9^{9^9}}",
        "(9!)!!",
        "1" * 9_999 + "+x",
        "(" * 3_000 + "1" + ")" * 3_000,
        "1" * 20_000,
        "1." + "1" * 9_000,
        "(x+y+z)^{60}(x-y)^{60}",
        "\\boxed{" * 2_000,
        "5\x00",
        "\ud800",
        "",
    ],
    ids=lambda bomb: ascii(bomb[:16]),
)
def test_a_bomb_gets_a_verdict_in_its_time_and_the_next_answer_too(verifier: MathVerifier, bomb: str):
    items = [Answered(f"\\boxed{{{bomb}}}", "x^2+1", "stop"), Answered("\\boxed{1+x^2}", "x^2+1", "stop")]
    start = time.perf_counter()
    bombed, next_one = verifier.judge(items)
    assert time.perf_counter() - start < SLACK
    assert bombed.verdict in ("unverifiable", "incorrect", "no_answer")
    assert next_one.verdict == "correct"


def test_an_answer_too_long_for_mathematics_is_unverifiable_unless_both_are_integers(verifier: MathVerifier):
    figures = "123456789" * 1_200
    items = [
        Answered(f"\\boxed{{{answer}}}", figures, "stop")
        for answer in (figures, "0" + figures, figures[:-1] + "8", figures + "x")
    ]
    assert [(judgement.verdict, judgement.cause) for judgement in verifier.judge(items)] == [
        ("correct", None),
        ("correct", None),
        ("incorrect", None),
        ("unverifiable", "too_long"),
    ]


decimals = st.decimals(-1000, 1000, places=3, allow_nan=False).map(str)
fractions = st.tuples(st.integers(-50, 50), st.integers(1, 30)).map(lambda pair: f"\\frac{{{pair[0]}}}{{{pair[1]}}}")
numbers = st.one_of(decimals, fractions, st.integers(-99, 99).map(str), st.integers(1000, 9_999_999).map("{:,}".format))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(numbers, numbers, st.booleans())
def test_numbers_are_the_same_exactly_where_math_verify_says_so(gold: str, answer: str, rounded: bool):
    if rounded and (value := value_of(gold)) is not None:
        answer = f"{float(value):.5f}"
    same = same_plainly(gold, answer)
    if same is not None:
        assert same is verify(parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{answer}}}"))


def value_of(text: str) -> Fraction | None:
    return Fraction(text) if "frac" not in text and "," not in text else None


def test_the_faster_reader_reads_what_math_verify_reads():
    golds = {readable(gold) for gold, _ in read_pairs(PAIRS)}
    slow = {gold: parse(f"\\boxed{{{gold}}}") for gold in golds if "text" not in gold and "mbox" not in gold}
    assert [gold for gold, readings in slow.items() if read_latex(gold) != readings[0]] == []


def test_thousands_of_verdicts_leave_no_process_no_descriptor_and_no_memory_behind():
    figures = soak(read_pairs(PAIRS), 3_000, processes=2, timeout_seconds=2, bad_every=750)
    assert figures["processes_after"] == figures["processes_before"]
    assert figures["descriptors_after"] == figures["descriptors_before"]
    counts, steps = figures["counts"], figures["steps"]
    assert isinstance(counts, dict) and isinstance(steps, list)
    assert sum(counts.values()) == 3_000
    assert counts["correct"] > 1_500
    assert steps[-1]["parent_mib"] - steps[1]["parent_mib"] < 20
    assert all(child < 400 for step in steps for child in step["children_mib"])


def test_the_file_of_pairs_says_where_its_answers_are_from():
    assert {line.split("\t")[0] for line in Path(PAIRS).read_text().splitlines()[1:]} == {"MATH", "GSM8K"}

"""Which traces are shown, and what is marked in them."""

from tokensqueeze.reporting.comparisons import Piece, answer_examples, compare_texts, refinement_examples, split_answer
from tokensqueeze.schema import EvaluationTrace, RefinedTrace, StepDecision, Verdict


def decision(index: int, original: str, kept: str, original_tokens: int = 10, kept_tokens: int = 10) -> StepDecision:
    return StepDecision(index, original, kept, original_tokens, kept_tokens, 0.001, None, 3, 2)


def refined(name: str, saved: int, decisions: list[StepDecision]) -> RefinedTrace:
    return RefinedTrace(name, name, "", [], 100 - saved, "", 100, decisions)


def answer(problem_id: str, verdict: Verdict, num_tokens: int, *, sample: int = 0, decoding: str = "greedy") -> EvaluationTrace:
    return EvaluationTrace(
        f"{problem_id}/{sample}",
        problem_id,
        sample,
        "",
        [],
        num_tokens,
        "stop",
        verdict,
        None,
        None,
        0,
        0,
        decoding,  # type: ignore[arg-type]
    )


def test_marks_words_that_went_and_words_that_came() -> None:
    before, after = compare_texts("So 7 + 5 = 12.", "7 + 5 = 12, done")
    assert before == (Piece("So ", True), Piece("7 + 5 = ", False), Piece("12.", True))
    assert after == (Piece("7 + 5 = ", False), Piece("12, done", True))


def test_no_character_is_lost_between_the_pieces() -> None:
    before, after = compare_texts("a\n  b c", "  a b\t\td ")
    assert "".join(piece.text for piece in before) == "a\n  b c"
    assert "".join(piece.text for piece in after) == "  a b\t\td "


def test_shows_the_biggest_saving_the_median_and_the_longest_repair() -> None:
    change = [decision(0, "long", "short")]
    traces = [refined("a", 5, change), refined("b", 40, change), refined("c", -8, change), refined("d", 99, [])]
    examples = refinement_examples(traces)
    assert [(example.label, example.trace.trace_id) for example in examples] == [
        ("Biggest saving", "b"),
        ("Typical: the median saving", "a"),
        ("Became longer", "c"),
    ]


def test_shows_a_trace_once_and_none_that_did_not_change() -> None:
    assert [example.trace.trace_id for example in refinement_examples([refined("a", 5, [decision(0, "x y", "x")])])] == ["a"]
    assert refinement_examples([refined("a", 0, [decision(0, "same", "same")])]) == []


def test_skips_unchanged_steps_that_stand_far_from_a_change() -> None:
    decisions = [decision(index, f"s{index}", "new" if index == 4 else f"s{index}") for index in range(9)]
    (example,) = refinement_examples([refined("a", 1, decisions)])
    assert [(step.number, step.skipped) for step in example.steps] == [(0, 3), (4, 0), (5, 0), (6, 0), (0, 3)]


def test_a_trace_of_very_many_steps_is_cut_and_the_rest_counted() -> None:
    decisions = [decision(index, f"s{index}", "new") for index in range(198)]
    (example,) = refinement_examples([refined("a", 1, decisions)])
    assert len(example.steps) + example.steps_left_out == 198
    assert example.steps_left_out == 158


def test_shows_each_way_a_question_can_end_with_how_often_it_does() -> None:
    base = [
        answer("a", "correct", 90),
        answer("b", "correct", 50),
        answer("c", "incorrect", 70),
        answer("d", "correct", 60),
    ]
    squeezed = [
        answer("a", "correct", 30),
        answer("b", "correct", 40),
        answer("c", "correct", 40),
        answer("d", "no_answer", 9),
    ]
    assert [(example.label, example.problem_id, example.how_often) for example in answer_examples(base, squeezed)] == [
        ("Both right: the median saving", "a", "2 of 4 held-out problems end so"),
        ("Only the squeezed model is right", "c", "1 of 4 held-out problems end so"),
        ("Only the base is right", "d", "1 of 4 held-out problems end so"),
    ]


def test_compares_first_samples_where_nothing_was_decoded_greedily() -> None:
    base = [answer("a", "correct", 90, sample=1, decoding="sampled"), answer("a", "correct", 80, decoding="sampled")]
    (example,) = answer_examples(base, [answer("a", "correct", 30, decoding="sampled")])
    assert example.base.num_tokens == 80


def test_splits_at_the_last_end_of_thinking() -> None:
    assert split_answer("a</think>b</think>\n\nThe answer", "</think>") == ("a</think>b</think>", "The answer")
    assert split_answer("never ends", "</think>") == ("never ends", "")


def test_long_thinking_is_cut_in_its_middle_and_says_so() -> None:
    thinking, _ = split_answer("x" * 3000 + "y" * 3000, "</think>")
    assert thinking.startswith("xxx") and thinking.endswith("yyy")
    assert "[… 2,000 characters left out …]" in thinking

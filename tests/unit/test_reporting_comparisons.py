"""Which traces are shown, and what is marked in them."""

from dataclasses import replace

from tokensqueeze.config import KLBound, Reliable
from tokensqueeze.reporting.comparisons import Piece, answer_examples, compare_texts, refinement_examples, split_answer
from tokensqueeze.schema import EvaluationTrace, RefinedTrace, StepDecision, Verdict


def decision(index: int, original: str, kept: str, original_tokens: int = 10, kept_tokens: int = 10) -> StepDecision:
    return StepDecision(index, original, kept, original_tokens, kept_tokens, 0.001, None, 3, 2)


def stayed(index: int, original: str, tried: str, kl: float, reliability: float | None = None) -> StepDecision:
    return replace(
        decision(index, original, original),
        rejected_text=tried,
        rejected_tokens=6,
        rejected_kl=kl,
        rejected_reliability=reliability,
    )


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
    examples = refinement_examples(traces, KLBound())
    assert [(example.label, example.trace.trace_id) for example in examples] == [
        ("Biggest saving", "b"),
        ("Typical: the median saving", "a"),
        ("Became longer", "c"),
    ]


def test_shows_a_trace_once_and_none_that_did_not_change() -> None:
    changed, same = [decision(0, "x y", "x")], [decision(0, "same", "same")]
    assert [example.trace.trace_id for example in refinement_examples([refined("a", 5, changed)], KLBound())] == ["a"]
    assert refinement_examples([refined("a", 0, same)], KLBound()) == []
    assert refinement_examples([], KLBound()) == []


def test_skips_unchanged_steps_that_stand_far_from_a_change() -> None:
    decisions = [decision(index, f"s{index}", "new" if index == 4 else f"s{index}") for index in range(9)]
    (example,) = refinement_examples([refined("a", 1, decisions)], KLBound())
    assert [(step.number, step.skipped) for step in example.steps] == [(0, 3), (4, 0), (5, 0), (6, 0), (0, 3)]


def test_a_trace_of_very_many_steps_is_cut_and_the_rest_counted() -> None:
    decisions = [decision(index, f"s{index}", "new") for index in range(198)]
    (example,) = refinement_examples([refined("a", 1, decisions)], KLBound())
    assert len(example.steps) + example.steps_left_out == 198
    assert example.steps_left_out == 158


def test_a_step_that_stayed_is_compared_with_the_candidate_that_was_tried() -> None:
    decisions = [decision(0, "a b", "a"), stayed(1, "So 7 + 5 = 12.\n\n", "7 + 5 = 12.\n\n", 0.0062)]
    (example,) = refinement_examples([refined("a", 1, decisions)], KLBound())
    changed, kept = example.steps
    assert changed.rewritten and changed.tried is None
    assert not kept.rewritten and kept.tried is not None
    assert kept.tried.before == (Piece("So ", True), Piece("7 + 5 = 12.", False))
    assert kept.tried.after == (Piece("7 + 5 = 12.", False),)
    assert kept.tried.candidate.saved_tokens == 4


def test_of_many_turned_down_candidates_the_nearest_are_shown_those_of_steps_that_stayed_first() -> None:
    # 0: rewritten, and nearest of all; 1 to 5 within the bound; 6 to 11 over it, the last ones the least.
    rewritten = replace(stayed(0, "long text", "t", 0.0051), kept_text="text")
    within = [stayed(index, "s", "t", 0.001, reliability=0.1 * index) for index in range(1, 6)]
    over = [stayed(index, "s", "t", 0.02 - 0.001 * index) for index in range(6, 12)]
    (example,) = refinement_examples([refined("a", 1, [rewritten, *within, *over])], Reliable())
    assert [step.number - 1 for step in example.steps if step.tried] == [1, 2, 3, 4, 5, 9, 10, 11]


def test_a_rewritten_step_shows_what_was_tried_besides() -> None:
    (example,) = refinement_examples([refined("a", 1, [replace(stayed(0, "x y", "z", 0.006), kept_text="x")])], KLBound())
    (step,) = example.steps
    assert step.rewritten and step.after == (Piece("x", True),)
    assert step.tried is not None and step.tried.after == (Piece("z", True),)


def test_the_trace_with_most_steps_that_stayed_joins_where_no_other_shows_one() -> None:
    changed = [decision(0, "long", "short")]
    few, most = [stayed(0, "s", "t", 0.006)], [stayed(index, "s", "t", 0.006) for index in range(3)]
    traces = [refined("a", 5, changed), refined("b", 0, most), refined("c", 0, few)]
    assert [example.trace.trace_id for example in refinement_examples(traces, KLBound())] == ["a", "b"]
    with_both = [refined("a", 5, [*changed, stayed(1, "s", "t", 0.006)]), *traces[1:]]
    assert [example.trace.trace_id for example in refinement_examples(with_both, KLBound())] == ["a"]


def test_a_run_that_accepted_nothing_shows_what_it_turned_down() -> None:
    (example,) = refinement_examples([refined("a", 0, [stayed(0, "s", "t", 0.006)])], KLBound())
    assert [step.tried is not None for step in example.steps] == [True]


def test_a_trace_that_is_cut_still_shows_steps_that_stayed() -> None:
    nearer_but_cut_off = [stayed(198 + index, "s", "t", 0.0051) for index in range(8)]
    decisions = [decision(index, "long", "short") for index in range(198)]
    decisions[20] = stayed(20, "s", "t", 0.009)
    (example,) = refinement_examples([refined("a", 1, decisions + nearer_but_cut_off)], KLBound())
    assert [step.number for step in example.steps if step.tried] == [21]
    assert len(example.steps) == 40 and example.steps_left_out == 166


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

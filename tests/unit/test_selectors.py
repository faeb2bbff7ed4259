"""The selection rules against examples worked out by hand."""

import pytest

from tokensqueeze.config import AdaptiveDepth, FixedQuantile, ReliableShortest, Shortest
from tokensqueeze.schema import Verdict, VerifiedTrace
from tokensqueeze.selectors.adaptive_depth import adaptive_depth
from tokensqueeze.selectors.choose import choose_traces
from tokensqueeze.selectors.fixed_quantile import fixed_quantile
from tokensqueeze.selectors.reliable_shortest import reliable_shortest
from tokensqueeze.selectors.shortest_correct import shortest_correct


def trace(index: int, num_tokens: int, verdict: Verdict = "correct") -> VerifiedTrace:
    return VerifiedTrace(
        trace_id=f"p/{index}",
        problem_id="p",
        sample_index=index,
        text="",
        token_ids=[0] * num_tokens,
        num_tokens=num_tokens,
        finish_reason="stop",
        verdict=verdict,
        extracted_answer=None,
        verdict_cause=None,
        thinking_tokens=num_tokens,
        answer_tokens=0,
    )


def traces(correct: int, sampled: int) -> list[VerifiedTrace]:
    """The correct ones are the longer ones, and come last: order must come from lengths alone."""
    wrong = [trace(i, 10 + i, "incorrect") for i in range(sampled - correct)]
    right = [trace(i, 1000 - i) for i in range(sampled - correct, sampled)]
    return wrong + right


@pytest.mark.parametrize(
    ("correct", "sampled", "alpha", "kept"),
    [
        (16, 64, 0.2, 3),  # p = 0.25, q = 0.15, 0.15 × 16 = 2.4
        (40, 64, 0.2, 3),  # p = 0.625, q = 0.075, 0.075 × 40 = 3 exactly
        (5, 10, 0.2, 1),  # p = 0.5, q = 0.1, 0.5
        (10, 20, 0.2, 1),  # 0.1 × 10 = 1 exactly, which floats make 1.0000000000000002
        (5, 10, 1.0, 3),  # 0.5 × 5 = 2.5
        (64, 64, 0.2, 1),  # p = 1: the formula gives 0, one is kept
        (32, 64, 0.0, 1),  # alpha = 0: the same
        (1, 64, 0.2, 1),
        (0, 64, 0.2, 0),
    ],
)
def test_adaptive_depth_keeps_as_many_as_the_formula_says(correct: int, sampled: int, alpha: float, kept: int) -> None:
    assert len(adaptive_depth(traces(correct, sampled), alpha=alpha)) == kept


def test_adaptive_depth_keeps_the_shortest_correct_ones_shortest_first() -> None:
    pool = [
        trace(0, 50),
        trace(1, 20, "incorrect"),
        trace(2, 30),
        trace(3, 40),
        trace(4, 10, "unverifiable"),
        trace(5, 25, "no_answer"),
    ]
    # p = 3/6, q = 1 × 0.5, k = ⌈1.5⌉ = 2
    assert [t.num_tokens for t in adaptive_depth(pool, alpha=1.0)] == [30, 40]


def test_equally_long_traces_are_ordered_by_sample() -> None:
    assert shortest_correct([trace(3, 20), trace(1, 20), trace(2, 20)])[0].sample_index == 1


def test_every_selector_keeps_nothing_when_every_trace_is_wrong() -> None:
    wrong = [trace(0, 5, "incorrect"), trace(1, 6, "unverifiable"), trace(2, 7, "no_answer")]
    for selector in (AdaptiveDepth(), Shortest(), FixedQuantile(), ReliableShortest()):
        assert choose_traces(selector, wrong) == []
        assert choose_traces(selector, []) == []


def test_fixed_quantile_keeps_the_same_share_whatever_the_pass_rate() -> None:
    assert len(fixed_quantile(traces(10, 10), quantile=0.2)) == 2
    assert len(fixed_quantile(traces(10, 100), quantile=0.2)) == 2
    assert len(fixed_quantile(traces(11, 100), quantile=0.2)) == 3
    assert len(fixed_quantile(traces(3, 100), quantile=0.0)) == 1


def test_reliable_shortest_skips_a_length_at_which_the_model_is_mostly_wrong() -> None:
    pool = [
        trace(0, 10),
        trace(1, 11, "incorrect"),
        trace(2, 12, "incorrect"),
        *(trace(i, 20 + i) for i in range(3, 20)),
    ]
    # The 10-token trace: (1 + ½)/2 = 0.75. With r right and 2 wrong: (r + ½)/(r + 3) ≥ 0.8 from r = 9.5 on, so r = 10:
    # the 10-token trace and nine of the others, the last of which is sample 11 with 31 tokens.
    assert [t.num_tokens for t in reliable_shortest(pool, min_reliability=0.8)] == [31]


def test_reliable_shortest_falls_back_to_the_most_dependable_length() -> None:
    pool = [trace(0, 10), trace(1, 11, "incorrect"), trace(2, 30)]
    # 10 tokens: 1.5/2 = 0.75; 30 tokens: 2.5/4 = 0.625.
    assert [t.num_tokens for t in reliable_shortest(pool, min_reliability=0.8)] == [10]

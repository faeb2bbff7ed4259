"""Which traces are paired with which."""

from tests.unit.test_selectors import trace
from tokensqueeze.config import PairingSettings
from tokensqueeze.schema import Problem, RefinedTrace
from tokensqueeze.selectors.pairing import chosen_alone, preference_pairs

PROBLEM = Problem("p", "question", "1", "prompt", [1, 2])


def refined(num_tokens: int, original: int, index: int = 0) -> RefinedTrace:
    return RefinedTrace(f"p/{index}", "p", "short", [0] * num_tokens, num_tokens, "long", original, [])


def rejected_ids(chosen: list[RefinedTrace], pool: list, **settings) -> list[str | None]:
    return [pair.rejected_trace_id for pair in preference_pairs(PROBLEM, chosen, pool, PairingSettings(**settings))]


def test_only_wrong_traces_that_are_longer_are_rejected() -> None:
    pool = [
        trace(1, 20, "incorrect"),  # as long as the chosen one was
        trace(2, 21, "incorrect"),
        trace(3, 99, "correct"),
        trace(4, 99, "unverifiable"),
        trace(5, 30, "no_answer"),
    ]
    assert rejected_ids([refined(10, original=20)], pool) == ["p/2", "p/5"]


def test_a_chosen_trace_that_refinement_made_longer_needs_a_longer_rejected_one() -> None:
    assert rejected_ids([refined(25, original=20)], [trace(1, 25, "incorrect"), trace(2, 26, "incorrect")]) == ["p/2"]


def test_much_longer_correct_traces_are_rejected_only_when_asked() -> None:
    pool = [trace(1, 30), trace(2, 31)]
    assert rejected_ids([refined(20, original=20)], pool) == []
    assert rejected_ids([refined(20, original=20)], pool, longer_correct_ratio=1.5) == ["p/2"]


def test_a_problem_has_at_most_so_many_pairs_and_they_are_always_the_same_ones() -> None:
    pool = [trace(i, 100 + i, "incorrect") for i in range(50)]
    chosen = [refined(10, 20, index=100), refined(11, 20, index=101)]
    first = preference_pairs(PROBLEM, chosen, pool, PairingSettings(max_pairs_per_problem=7))
    assert len({pair.pair_id for pair in first}) == 7
    assert first == preference_pairs(PROBLEM, chosen, pool, PairingSettings(max_pairs_per_problem=7))
    assert len(preference_pairs(PROBLEM, chosen, pool, PairingSettings(max_pairs_per_problem=100))) == 100


def test_chosen_alone_leaves_the_rejected_side_empty() -> None:
    (pair,) = chosen_alone(PROBLEM, [refined(10, 20)])
    assert (pair.rejected, pair.rejected_token_ids, pair.rejected_num_tokens) == (None, None, None)
    assert pair.chosen == "short"

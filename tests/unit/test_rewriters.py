"""The two rules that accept a rewriting, against examples worked out by hand."""

from collections.abc import Sequence

import pytest

from tokensqueeze.rewriters.kl_bound import choose_within_bound
from tokensqueeze.rewriters.reliable import choose_reliable
from tokensqueeze.schema import Candidate

STEP = "47 + 38 - 7 = 78, so it is 78."
STEP_IDS = list(range(20))


def candidate(text: str, length: int, draw: int, draws: int = 1) -> Candidate:
    return Candidate(text, [100 + draw] * length, draws, draw)


class Scores:
    """KL by first draw; remembers what was asked."""

    def __init__(self, kls: dict[int, float]):
        self.kls, self.asked = kls, []

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        self.asked += [c.first_draw for c in candidates]
        return [self.kls[c.first_draw] for c in candidates]


def test_the_shortest_candidate_inside_the_bound_wins_and_nothing_longer_is_scored() -> None:
    pool = [candidate("c", 12, 0), candidate("a", 5, 1), candidate("b", 8, 2)]
    score = Scores({0: 0.0, 1: 0.3, 2: 0.004})
    choice = choose_within_bound(STEP_IDS, pool, score, kl_bound=0.005)
    assert choice.candidate == pool[2]
    assert (choice.kl, choice.num_scored, score.asked) == (0.004, 2, [1, 2])


def test_ties_in_length_go_to_the_lower_kl_then_to_the_earlier_draw() -> None:
    pool = [candidate("a", 5, 0), candidate("b", 5, 1), candidate("c", 5, 2)]
    assert choose_within_bound(STEP_IDS, pool, Scores({0: 0.004, 1: 0.001, 2: 0.002}), kl_bound=0.005).candidate == pool[1]
    assert choose_within_bound(STEP_IDS, pool, Scores({0: 0.004, 1: 0.001, 2: 0.001}), kl_bound=0.005).candidate == pool[1]


def test_a_candidate_as_long_as_the_step_or_on_the_bound_does_not_win() -> None:
    pool = [candidate("a", 20, 0), candidate("b", 19, 1)]
    choice = choose_within_bound(STEP_IDS, pool, Scores({0: 0.0, 1: 0.005}), kl_bound=0.005)
    assert (choice.candidate, choice.kl, choice.num_scored) == (None, 0.0, 1)


def test_no_candidates_keep_the_step() -> None:
    assert choose_within_bound(STEP_IDS, [], Scores({}), kl_bound=0.005).candidate is None


def reliable(pool: list[Candidate], kls: dict[int, float], min_reliability: float = 0.9):
    return choose_reliable(
        STEP, STEP_IDS, pool, Scores(kls), kl_bound=0.005, min_reliability=min_reliability, form="masked_numbers"
    )


def test_a_shortcut_that_mostly_fails_gives_way_to_a_longer_worked_out_step() -> None:
    one_shot_right = candidate("47 + 38 - 7 = 78.", 9, 0, draws=6)
    one_shot_wrong = candidate("47 + 38 - 7 = 68.", 9, 6, draws=6)
    worked = candidate("47 + 38 = 85, 85 - 7 = 78.", 14, 12, draws=19)
    # One shot: (6 + ½)/(12 + 1) = 0.5. Worked out: (19 + ½)/(19 + 1) = 0.975. The original's form: (1 + ½)/(1 + 1) = 0.75.
    choice = reliable([one_shot_right, one_shot_wrong, worked], {0: 0.001, 6: 2.0, 12: 0.002})
    assert choice.candidate == worked
    assert choice.reliability == pytest.approx(0.975)
    assert choice.num_scored == 3


def test_a_dependable_shortcut_is_taken() -> None:
    right = candidate("47 + 38 = 85.", 7, 0, draws=15)
    assert reliable([right, candidate("47 + 38 - 7 = 85, yes.", 15, 15)], {0: 0.001, 15: 0.001}).candidate == right


def test_a_longer_text_is_kept_when_the_original_is_the_lucky_one() -> None:
    wrong_of_the_same_form = candidate("47 + 38 - 7 = 68, so it is 68.", 20, 0, draws=10)
    longer = candidate("First 47 + 38 = 85. Then 85 - 7 = 78.", 26, 10, draws=12)
    choice = reliable([wrong_of_the_same_form, longer], {0: 1.0, 10: 0.003})
    assert choice.candidate == longer


def test_draws_equal_to_the_original_count_for_its_form_and_are_not_scored() -> None:
    same = Candidate(STEP, STEP_IDS, 12, 0)
    choice = reliable([same], {})
    # (1 + 12 + ½)/(13 + 1)
    assert choice.candidate is None
    assert choice.reliability == pytest.approx(13.5 / 14)
    assert choice.num_scored == 0


def test_without_a_reliable_form_the_most_reliable_one_is_kept() -> None:
    coin_flip = [candidate("1 + 1 = 2.", 5, 0, draws=2), candidate("1 + 1 = 3.", 5, 2, draws=2)]
    choice = reliable(coin_flip, {0: 0.001, 2: 1.0})
    # One shot: 2.5/5 = 0.5; the original alone: 1.5/2 = 0.75.
    assert choice.candidate is None
    assert choice.reliability == pytest.approx(0.75)


def test_forms_may_be_classes_of_length() -> None:
    short = [candidate(f"text {i}", 6, i, draws=1) for i in range(4)]
    kls = {0: 0.0, 1: 9.0, 2: 9.0, 3: 9.0, 4: 0.001}
    longer = candidate("quite another text", 12, 4, draws=20)
    choice = choose_reliable(
        STEP, STEP_IDS, [*short, longer], Scores(kls), kl_bound=0.005, min_reliability=0.9, form="length_class"
    )
    assert choice.candidate == longer

"""The two rules that accept a rewriting, against examples worked out by hand."""

import pytest

from tokensqueeze.rewriters.choice import Choice, Judged, Rejected, Rule
from tokensqueeze.rewriters.forms import Form
from tokensqueeze.rewriters.kl_bound import choose_within_bound
from tokensqueeze.rewriters.reliable import choose_reliable
from tokensqueeze.schema import Candidate

STEP = "47 + 38 - 7 = 78, so it is 78."
STEP_IDS = list(range(20))


def candidate(text: str, length: int, draw: int, draws: int = 1) -> Candidate:
    return Candidate(text, [100 + draw] * length, draws, draw)


def choice_of(rule: Rule, kls: dict[int, float], asked: list[int] | None = None) -> Choice:
    """Answer a rule from KLs by first draw, under a bound of 0.005."""
    try:
        wanted = next(rule)
        while True:
            if asked is not None:
                asked += [c.first_draw for c in wanted]
            wanted = rule.send([Judged(kls[c.first_draw], kls[c.first_draw] < 0.005) for c in wanted])
    except StopIteration as end:
        return end.value


def test_the_shortest_candidate_inside_the_bound_wins_and_nothing_longer_is_scored() -> None:
    pool = [candidate("c", 12, 0), candidate("a", 5, 1), candidate("b", 8, 2)]
    asked: list[int] = []
    choice = choice_of(choose_within_bound(STEP_IDS, pool), {0: 0.0, 1: 0.3, 2: 0.004}, asked)
    assert choice.candidate == pool[2]
    assert (choice.kl, choice.num_scored, asked) == (0.004, 2, [1, 2])


def test_ties_in_length_go_to_the_lower_kl_then_to_the_earlier_draw() -> None:
    pool = [candidate("a", 5, 0), candidate("b", 5, 1), candidate("c", 5, 2)]
    assert choice_of(choose_within_bound(STEP_IDS, pool), {0: 0.004, 1: 0.001, 2: 0.002}).candidate == pool[1]
    assert choice_of(choose_within_bound(STEP_IDS, pool), {0: 0.004, 1: 0.001, 2: 0.001}).candidate == pool[1]


def test_a_candidate_as_long_as_the_step_or_on_the_bound_does_not_win() -> None:
    pool = [candidate("a", 20, 0), candidate("b", 19, 1)]
    choice = choice_of(choose_within_bound(STEP_IDS, pool), {0: 0.0, 1: 0.005})
    assert (choice.candidate, choice.kl, choice.num_scored) == (None, 0.0, 1)


def test_no_candidates_keep_the_step() -> None:
    assert choice_of(choose_within_bound(STEP_IDS, []), {}).candidate is None


def reliable(
    pool: list[Candidate],
    kls: dict[int, float],
    *,
    min_reliability: float = 0.9,
    min_form_draws: int = 1,
    form: Form = "masked_numbers",
) -> Choice:
    rule = choose_reliable(
        STEP,
        STEP_IDS,
        pool,
        min_reliability=min_reliability,
        min_form_draws=min_form_draws,
        form=form,
        max_edit_distance=0.2,
    )
    return choice_of(rule, kls)


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
    assert reliable([*short, longer], kls, form="length_class").candidate == longer


def wordings(count: int, length: int, draw: int) -> list[Candidate]:
    """Texts drawn once, of which no two are one form."""
    return [candidate(f"{'so ' * (draw + i)}it is 78.", length, draw + i) for i in range(count)]


def test_a_form_of_few_draws_is_judged_with_all_such_forms_that_are_no_longer() -> None:
    lucky, wrong, right = wordings(1, 5, 0), wordings(3, 6, 1), wordings(30, 15, 4)
    kls = {c.first_draw: 0.001 for c in (*lucky, *right)} | {c.first_draw: 2.0 for c in wrong}
    pool = [*lucky, *wrong, *right]
    # Up to 5 tokens, one draw: too few. Up to 15: 31 of 34 pass, (31 + ½)/(34 + 1) = 0.9.
    choice = reliable(pool, kls, min_form_draws=4)
    assert choice.candidate == right[0]
    assert choice.reliability == pytest.approx(0.9)
    # By themselves all passing texts have 0.75, and the shortest is taken, as by the KL bound alone.
    assert reliable(pool, kls, min_form_draws=1).candidate == lucky[0]


def test_an_unproven_text_never_stands_in_for_the_original() -> None:
    lucky, wrong = wordings(1, 5, 0), wordings(20, 12, 1)
    kls = {0: 0.001} | {c.first_draw: 2.0 for c in wrong}
    choice = reliable([*lucky, *wrong], kls, min_form_draws=4, min_reliability=0.6)
    # The original by its own one draw: (1 + ½)/(1 + 1); with all 22 draws it would be (2 + ½)/(22 + 1).
    assert (choice.candidate, choice.reliability) == (None, 0.75)


def test_the_original_stays_where_whatever_the_model_writes_passes() -> None:
    longer = wordings(8, 25, 0)
    short = wordings(2, 19, 8)
    choice = reliable(
        [*longer, *short], {c.first_draw: 0.001 for c in (*longer, *short)}, min_form_draws=3, min_reliability=0.8
    )
    # Up to 19 tokens: two draws, too few. Up to 20, the original's length: three of three, (3 + ½)/(3 + 1) = 0.875.
    assert (choice.candidate, choice.reliability) == (None, 0.875)


def test_what_is_not_reliable_enough_gives_way_to_a_proven_form_that_is_better_than_the_original() -> None:
    right, wrong = candidate("47 + 38 = 85.", 25, 0, draws=16), candidate("47 + 38 = 84.", 25, 16, draws=3)
    # (16 + ½)/(19 + 1) = 0.825 is under 0.9 and above the original's 0.75.
    choice = reliable([right, wrong], {0: 0.001, 16: 1.0}, min_form_draws=4)
    assert choice.candidate == right
    assert choice.reliability == pytest.approx(0.825)


def test_the_bound_turns_down_the_candidate_that_came_nearest_to_it() -> None:
    pool = [candidate("a", 5, 0), candidate("b", 6, 1), candidate("c", 7, 2), candidate("d", 8, 3)]
    # What is longer than the winner was not looked at.
    choice = choice_of(choose_within_bound(STEP_IDS, pool), {0: 0.3, 1: 0.02, 2: 0.001, 3: 0.006})
    assert choice.candidate == pool[2]
    assert choice.rejected == Rejected(pool[1], 0.02)
    assert choice_of(choose_within_bound(STEP_IDS, pool), {0: 0.3, 1: 0.3, 2: 0.3, 3: 0.3}).rejected == Rejected(pool[0], 0.3)


def test_a_candidate_that_was_never_read_is_not_the_nearest() -> None:
    pool = [candidate("a", 5, 0), candidate("b", 6, 1)]
    rule = choose_within_bound(STEP_IDS, pool)
    next(rule)
    rule.send([Judged(0.0, passes=False)])
    with pytest.raises(StopIteration) as end:
        rule.send([Judged(0.3, passes=False)])
    assert end.value.value.rejected == Rejected(pool[1], 0.3)


def test_a_shortcut_turned_down_for_its_reliability_is_named_with_it() -> None:
    lucky, wrong = candidate("47 + 38 - 7 = 78.", 9, 0, draws=6), candidate("47 + 38 - 7 = 68.", 9, 6, draws=6)
    worked = candidate("47 + 38 = 85, 85 - 7 = 78.", 14, 12, draws=19)
    choice = reliable([lucky, wrong, worked], {0: 0.001, 6: 0.006, 12: 0.002})
    # (6 + ½)/(12 + 1)
    assert choice.rejected == Rejected(lucky, 0.001, 0.5)


def test_where_nothing_passing_was_turned_down_the_nearest_failing_text_shorter_than_the_step_is_named() -> None:
    short, near, longer = candidate("x", 9, 0), candidate("y", 12, 1), candidate("z", 25, 2)
    choice = reliable([short, near, longer], {0: 0.4, 1: 0.03, 2: 0.006})
    assert (choice.candidate, choice.rejected) == (None, Rejected(near, 0.03))
    assert reliable([longer], {2: 0.006}).rejected is None

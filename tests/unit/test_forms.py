"""Which texts are the same form, against groupings made by hand."""

import random

import pytest

from tokensqueeze.rewriters.forms import Form, edit_distance, forms_of, length_class, masked_content, masked_numbers
from tokensqueeze.schema import Candidate


def candidates(*texts: str, draws: int = 1) -> list[Candidate]:
    return [Candidate(text, list(range(max(1, len(text.split())))), draws, index) for index, text in enumerate(texts)]


def forms(form: Form, *texts: str, max_edit_distance: float = 0.2) -> list[int]:
    return forms_of(candidates(*texts), form, max_edit_distance=max_edit_distance)


def test_texts_that_differ_in_their_numbers_alone_are_one_form() -> None:
    texts = ("47 + 38 = 85.", "47 + 38 = 1,085.5.", "47 + 38 makes 85.", "Now 47 + 38 = 85.")
    assert forms("masked_numbers", *texts) == [0, 0, 1, 2]
    assert masked_numbers("x1 = 1,000.25, 3") == "x# = #, #"


def test_masked_content_forgets_names_variables_case_and_white_space() -> None:
    texts = ("Then Tom has x = 5 apples.", "then  Ann has y=12 apples.", "Then Tom has 5 apples.")
    assert forms("masked_content", *texts) == [0, 0, 1]


def test_masked_content_keeps_the_words_a_and_i_and_the_ends_of_words() -> None:
    assert masked_content("I see a pen, let's take b of them.") == "i see a pen,let's take % of them."
    assert masked_content("Thus 2x_1 + 3y = 7") == "thus #%+#%=#"


def test_masked_content_keeps_how_much_a_formula_works_out() -> None:
    one_shot = masked_content(r"So $47 + 38 - 7 = 78$.")
    assert one_shot == masked_content(r"So \( a + b - c = d \).")
    assert one_shot == "so$=$."
    assert masked_content(r"So $47 + 38 = 85$, $85 - 7 = 78$.") != one_shot
    assert masked_content(r"So \[47 + 38 = 85 = 80 + 5 \approx 90\].") == r"so$==\approx$."


def test_masked_content_takes_money_for_no_formula() -> None:
    apples = masked_content("He pays $5 for apples and $7 for pears.")
    assert apples == "he pays$# for apples and$# for pears."
    assert apples != masked_content("He pays $5 for shoes but owes $7 for pears.")
    assert masked_content("It is $10-$3=$7, so $x = 7$ and she has $7.") == "it is$#-$#=$#,so$=$and she has$#."
    assert masked_content("Pay $5.\nThen $7.") == "pay$#.then$#."


def test_masked_content_finds_formulas_that_hold_money() -> None:
    assert masked_content(r"So $\$5 + \$3 = \$8$ in all.") == "so$=$in all."
    assert masked_content(r"So \$5 for apples and \$3 for pears.") == r"so\$# for apples and\$# for pears."
    assert masked_content("So $x$, $y$, $$1\n= 2$$ and $a$.") == "so$$,$$,$=$and$$."


def test_length_classes_begin_a_quarter_longer_each() -> None:
    # 1.25 ** 10 = 9.31, ** 11 = 11.64, ** 12 = 14.55
    assert [length_class(n) for n in (0, 1, 9, 10, 11, 12, 14, 15)] == [0, 0, 9, 10, 10, 11, 11, 12]


def test_texts_few_edits_apart_are_one_cluster() -> None:
    texts = (
        "So we add the two and get 85 in all.",  # 11 words and signs
        "So we add the two and get 85.",  # two edits of 11
        "Thus we add both and obtain 85 in all.",  # So, the, two, get: four edits of 11
        "85 - 7 = 78.",
    )
    assert forms("edit_cluster", *texts, max_edit_distance=0.2) == [0, 0, 1, 2]
    assert forms("edit_cluster", *texts, max_edit_distance=0.5) == [0, 0, 0, 1]
    assert forms("edit_cluster", *texts, max_edit_distance=0.0) == [0, 1, 2, 3]


def test_a_cluster_never_mixes_texts_that_work_out_more_or_less() -> None:
    one_shot = "Then, Tom buys 38 apples and loses 7, so 47 + 38 - 7 = 78."
    worked = "Then, Tom buys 38 apples and loses 7, so 47 + 38 = 85, 85 - 7 = 78."
    assert forms("edit_cluster", one_shot, worked, max_edit_distance=0.9) == [0, 1]
    assert forms("edit_cluster", one_shot, one_shot.replace("Then, ", ""), max_edit_distance=0.9) == [0, 0]


def test_a_text_joins_the_nearest_leader_and_the_most_drawn_lead() -> None:
    texts = ("a b c d e f g h", "a b c d e f x y", "a b c d e f g y")
    drawn = [Candidate(text, [1], draws, index) for index, (text, draws) in enumerate(zip(texts, (5, 9, 1), strict=True))]
    # The first two are two edits of eight apart, the third is one edit from either: the tie goes to the earlier leader.
    assert forms_of(drawn, "edit_cluster", max_edit_distance=0.2) == [0, 1, 1]
    assert forms_of(drawn, "edit_cluster", max_edit_distance=0.25) == [0, 0, 0]


def test_a_text_of_no_words_is_a_form_like_any_other() -> None:
    for form in ("masked_numbers", "masked_content", "length_class", "edit_cluster"):
        assert forms(form, "", "") == [0, 0]
        assert forms(form) == []


@pytest.mark.parametrize("form", ["masked_numbers", "masked_content", "length_class", "edit_cluster"])
def test_forms_do_not_depend_on_how_often_they_are_asked_for(form: Form) -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choices(["so", "we", "add", "1", "2", "=", "x"], k=rng.randint(0, 12))) for _ in range(64)]
    first = forms(form, *texts, max_edit_distance=0.4)
    assert forms(form, *texts, max_edit_distance=0.4) == first
    assert 1 < len(set(first)) < 64
    # Numbered as they first appear.
    assert [label for index, label in enumerate(first) if label not in first[:index]] == list(range(len(set(first))))


def test_edit_distance_is_that_of_the_plain_table() -> None:
    rng = random.Random(5)
    for _ in range(300):
        one, other = (rng.choices("abcd", k=rng.randint(0, 90)) for _ in range(2))
        assert edit_distance(one, other) == by_table(one, other)


def by_table(one: list[str], other: list[str]) -> int:
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        corner, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]

"""The evaluation table, the verdict in words, and how figures are written: against hand-written expectations."""

import io
from typing import Any

import pytest
from rich.console import Console

from tokensqueeze.reporting import wording
from tokensqueeze.reporting.headline import headline
from tokensqueeze.reporting.summary import evaluation_markdown, evaluation_rows, evaluation_table


def cell(**values: float | None) -> dict[str, Any]:
    """DEMO's base, sampled; any figure may be replaced."""
    return {
        "accuracy": 0.851,
        "accuracy_se": 0.011,
        "length_all": 150.84,
        "length_all_se": 2.04,
        "length_correct": 146.2,
        "length_correct_se": 2.1,
        "thinking_length": 137.8,
        "thinking_length_se": 2.0,
        "answer_length": 13.0,
        "answer_length_se": 0.0,
        "auc": 0.536,
        "auc_se": 0.009,
        "num_problems": 600,
        "num_samples": 1200,
    } | values


def evaluation_of(
    *, gain: float = 0.076, gain_p: float | None = 0.0001, ratio: float = 0.388, ratio_p: float | None = 0.0001
) -> dict[str, Any]:
    change = {
        "accuracy": gain,
        "accuracy_se": 0.011,
        "accuracy_p": gain_p,
        "length_ratio": ratio,
        "length_ratio_se": 0.005,
        "length_p": ratio_p,
        "auc": 0.257,
        "auc_se": 0.01,
        "auc_p": 0.0312,
        "num_problems": 600,
    }
    squeezed = cell(accuracy=0.927, accuracy_se=0.006, length_all=58.5, length_all_se=0.7)
    return {
        "base": {"sampled": cell(), "greedy": cell(num_samples=600)},
        "squeezed": {"sampled": squeezed, "greedy": squeezed},
        "change": {"sampled": change, "greedy": change},
    }


def test_rows_hold_both_models_and_their_change_for_both_decodings() -> None:
    rows = evaluation_rows(evaluation_of())
    assert [row[0] for row in rows] == [
        "base, sampled",
        "squeezed, sampled",
        "change, sampled",
        "p, sampled",
        "base, greedy",
        "squeezed, greedy",
        "change, greedy",
        "p, greedy",
    ]
    assert rows[0][1:] == ("85.1 ± 1.1", "146.2 ± 2.1", "150.8 ± 2.0", "137.8 ± 2.0", "13.0 ± 0.0", "53.6 ± 0.9")
    assert rows[2][1:] == ("+7.6 ± 1.1", "", "× 0.388 ± 0.005", "", "", "+25.7 ± 1.0")
    assert rows[3][1:] == ("< 0.001", "", "< 0.001", "", "", "0.031")


def test_a_decoding_that_was_not_done_has_no_rows() -> None:
    evaluation = {model: {"greedy": cells["greedy"]} for model, cells in evaluation_of().items()}
    assert [row[0] for row in evaluation_rows(evaluation)] == [
        "base, greedy",
        "squeezed, greedy",
        "change, greedy",
        "p, greedy",
    ]


def test_a_model_that_is_never_right_has_no_length_of_correct_answers() -> None:
    evaluation = {"base": {"greedy": cell(length_correct=None, length_correct_se=None)}}
    assert evaluation_rows(evaluation)[0][2] == "–"


def test_terminal_table_shows_every_figure_uncut_in_100_columns() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(evaluation_table(evaluation_of()))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    for figure in ("85.1 ± 1.1", "92.7 ± 0.6", "150.8 ± 2.0", "58.5 ± 0.7", "+7.6 ± 1.1", "× 0.388 ± 0.005"):
        assert figure in printed


def test_a_narrow_terminal_cuts_nothing_off() -> None:
    console = Console(file=io.StringIO(), width=60)
    console.print(evaluation_table(evaluation_of()))
    assert "…" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_markdown_table_is_rectangular() -> None:
    table = evaluation_markdown(evaluation_of()).split("\n\n")[0].splitlines()
    assert len(table) == 10
    assert {line.count("|") for line in table} == {8}


@pytest.mark.parametrize(
    ("gain", "gain_p", "ratio", "ratio_p", "verdict", "tone"),
    [
        (0.076, 0.001, 0.388, 0.001, "Shorter, and more often right.", "good"),
        (-0.010, 0.3, 0.388, 0.001, "Shorter, with no change in accuracy that 600 problems could show.", "good"),
        (-0.239, 0.05, 0.41, 0.05, "Shorter, but less often right: the saving costs accuracy.", "bad"),
        (0.076, 0.001, 1.004, 0.051, "More often right, with no clear change in length.", "open"),
        (0.010, 0.051, 1.004, 0.7, "No change that 600 problems could show.", "open"),
        (-0.076, 0.01, 1.3, 0.01, "Longer, and less often right.", "bad"),
    ],
)
def test_calls_a_change_what_chance_gives_in_one_of_twenty_at_most(
    gain: float, gain_p: float, ratio: float, ratio_p: float, verdict: str, tone: str
) -> None:
    said = headline(evaluation_of(gain=gain, gain_p=gain_p, ratio=ratio, ratio_p=ratio_p))
    assert (said.verdict, said.tone) == (verdict, tone)


def test_headline_gives_share_of_tokens_and_points() -> None:
    assert headline(evaluation_of()).figure == "39 % of the tokens, +7.6 points (±1.1)"
    assert headline(evaluation_of(gain=-0.239)).figure == "39 % of the tokens, −23.9 points (±1.1)"


def test_headline_judges_nothing_without_a_test() -> None:
    said = headline(evaluation_of(gain_p=None, ratio_p=None))
    assert said.tone == "open"
    assert "600 problems can't tell a change from chance" in said.verdict


def test_headline_takes_greedy_answers_where_none_were_sampled() -> None:
    evaluation = {model: {"greedy": cells["greedy"]} for model, cells in evaluation_of().items()}
    assert headline(evaluation).decoding == "greedy"


def test_figures_are_written_the_same_everywhere() -> None:
    assert wording.percent(0.927) == "92.7 %"
    assert wording.points(-0.0004) == "±0.0 points"
    assert wording.number(13337.2) == "13,337"
    assert wording.number_with_error(13337.2, 512.3) == "13,337 ± 512"
    assert wording.number(None) == "–"
    assert [wording.duration(seconds) for seconds in (8.25, 59.4, 59.7, 95, 120, 5400)] == [
        "8.2 s",
        "59 s",
        "1 min",
        "1 min 35 s",
        "2 min",
        "1 h 30 min",
    ]
    assert [wording.signed_tokens(change) for change in (-12, 1, 0)] == ["−12 tokens", "+1 token", "±0 tokens"]
    assert [wording.p_value(p) for p in (0.0132, 0.00005, 1.0, None)] == ["0.013", "< 0.001", "1.000", "–"]
    assert [wording.signed(change) for change in (7.62, -0.04, -1234.56, 0.0)] == ["+7.6", "0.0", "−1,234.6", "0.0"]
    assert wording.interval([0.829, 0.872], scale=100) == "82.9–87.2"
    assert wording.interval([-0.012, 0.034], scale=100, sign=True) == "[−1.2, +3.4]"
    assert wording.interval([1773.2, 2045.7], decimals=0) == "1,773–2,046"
    assert wording.interval(None) == ""
    assert (wording.counted(1, "problem"), wording.counted(1200, "problem")) == ("1 problem", "1,200 problems")

"""The page of a comparison, read back as a reader's browser would: the figures, the words for them, and nothing else."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from tests.unit.evaluated_folders import Outcomes, forced, problem, traces
from tests.unit.test_reporting_report import EVIL, Page
from tokensqueeze.reporting.comparison_charts import difficulty_charts, length_charts, level_charts, main_charts
from tokensqueeze.reporting.comparison_data import ComparedModel, Comparison, Section
from tokensqueeze.reporting.comparison_page import comparison_html, verdicts
from tokensqueeze.schema import ForcedTrace, Problem

# Four samples a problem; the first model's first and third sort the problems, its second and fourth are measured.
BASE: Outcomes = {
    "p1": [100, 200, 100, -200],
    "p2": [-300, 100, -300, 100],
    "p3": [100, 400, -100, 400],
    "p4": [-500, -500, -500, -500],
}
SHORT: Outcomes = {
    "p1": [50, 50, 50, 50],
    "p2": [50, 50, 50, 50],
    "p3": [80, -80, 80, -80],
    "p4": [90, 90, -90, -90],
}
LEVELS: Mapping[str, str | None] = {"p1": "1", "p2": "2", "p3": "2", "p4": None}


def section_of(
    outcomes: Mapping[str, Outcomes],
    *,
    forced_traces: Mapping[str, Sequence[ForcedTrace]] | None = None,
    levels: Mapping[str, str | None] = LEVELS,
    question: str = "",
    warnings: Sequence[str] = (),
) -> Section:
    models = [
        ComparedModel(name, traces(own), (forced_traces or {}).get(name, ()), {"model": f"models/{name}", "decoding": "greedy"})
        for name, own in outcomes.items()
    ]
    first = next(iter(outcomes.values()))
    problems: dict[str, Problem] = {
        name: problem(name, level=levels.get(name), **({"question": question} if question else {})) for name in first
    }
    return Section("math500, sampled", 1000, models, problems, warnings)


def page_of(*sections: Section, notes: Sequence[str] = ()) -> Page:
    return Page.of(comparison_html(Comparison(sections, "0.1.0", notes)))


@pytest.fixture(scope="module")
def section() -> Section:
    curves = {
        "base": [*forced({name: [-20, 20] for name in BASE}, 16), *forced({name: [70, 70] for name in BASE}, 64)],
        "short": forced({name: [30] for name in BASE}, 64),
    }
    return section_of({"base": BASE, "short": SHORT}, forced_traces=curves, warnings=["Only 4 problems: <rough>."])


@pytest.fixture(scope="module")
def page(section: Section) -> Page:
    return page_of(section, notes=["aime24 is left out."])


def test_tables_hold_the_figures_of_every_model_and_of_the_difference(page: Page) -> None:
    header, base, short = page.tables["s1-models"]
    figures = dict(zip(header, base, strict=True))
    # 3, 2, 3 and 0 of 4 samples are right.
    assert figures["accuracy %"].startswith("50.0")
    assert figures["Len-T"].startswith("187.5")  # (400 + 200 + 900) / 8
    assert figures["Len-A"].startswith("275.0")  # (600 + 800 + 1000 + 2000) / 16
    assert dict(zip(header, short, strict=True))["accuracy %"].startswith("75.0")
    # pass@4: one of four is right, of three problems of four, and of all four.
    assert figures["pass@4 %"].startswith("75.0")
    (_, accuracy, accuracy_p, tokens, tokens_p, *_) = page.tables["s1-changes"][1]
    assert accuracy.startswith("+25.0")
    # Differences of 1, 2, −1 and 2 quarters, 4 in all: of 16 sign patterns 6 go as far, to ±6 once each and to ±4 twice.
    assert accuracy_p == "0.375"
    assert tokens.startswith("0.245")  # (200 + 200 + 320 + 360) / (600 + 800 + 1000 + 2000)
    assert tokens_p == "0.125"  # all four shorter: 2 of 16


def test_words_for_a_difference_claim_no_more_than_its_p_value() -> None:
    many = {f"p{i:02d}": [400 + i, 400 - i] for i in range(20)}  # right 40 times, AUC 0.6
    shorter = {name: [104, 100] for name in many}  # AUC 0.898
    (said,) = verdicts(section_of({"base": many, "short": shorter}))
    assert said == (
        "short: 26 % of the tokens (p < 0.001), ±0.0 points of accuracy (could be chance: p = 1.000), "
        "+29.8 points of AUC (p < 0.001)."
    )
    (alone,) = verdicts(section_of({"base": {"p1": [10, -10]}, "short": {"p1": [5, 5]}}))
    assert alone.startswith("short: 50 % of the tokens (one problem: no test)")


def test_half_of_the_first_models_samples_sort_and_all_are_measured_on_the_other(section: Section, page: Page) -> None:
    # Sorted by samples 1 and 3: p1 both right, p3 one, p2 and p4 none. Measured on samples 2 and 4.
    chart = next(chart for chart in difficulty_charts(section, "s1") if chart.name == "s1-difficulty-accuracy")
    assert [row[0] for row in chart.rows] == ["none\nn = 2", "to 50 %\nn = 1", "all\nn = 1"]
    assert [row[1] for row in chart.rows] == [0.5, 1.0, 0.5]  # p2 right twice and p4 never; p3 twice; p1 once
    assert [row[3] for row in chart.rows] == [0.75, 0.0, 1.0]  # p2 twice and p4 once; p3 never; p1 twice
    assert "sorted by every second sample of base, and all models are measured on the others only" in page.sections["s1"]
    assert "50.0 %, 300" in page.sections["s1"]  # of the hard ones: 100 and 500 tokens


def test_one_sample_each_is_not_sorted_by_the_luck_that_is_then_measured() -> None:
    once = section_of({"base": {"p1": [10], "p2": [-10]}, "short": {"p1": [5], "p2": [5]}})
    assert difficulty_charts(once, "s1") == []
    assert "base has one sample of some problem" in page_of(once).sections["s1"]


def test_levels_of_the_data_set_have_their_table_and_charts(section: Section, page: Page) -> None:
    chart = level_charts(section, "s1")[0]
    assert [row[0] for row in chart.rows] == ["1\nn = 1", "2\nn = 2", "no level\nn = 1"]
    assert [row[1] for row in chart.rows] == pytest.approx([0.75, (0.5 + 0.75) / 2, 0])
    assert "By the data set's own level" in page.sections["s1"]
    without = section_of({"base": BASE, "short": SHORT}, levels={})
    assert level_charts(without, "s1") == []
    assert "own level" not in page_of(without).text


def test_the_budget_curve_of_each_model_has_its_band(section: Section) -> None:
    chart = main_charts(section, "s1")[0]
    assert chart.headers == ("tokens allowed per completion", "base", "low", "high", "short", "low", "high")
    last = chart.rows[-1]
    assert (last[0], last[1], last[4]) == (500, 0.5, 0.75)
    low, high = section.cells[0].accuracy_ci or (0, 0)
    assert (last[2], last[3]) == (low, high)
    assert chart.rows[0][1:] == (0, None, None, 0, None, None)


def test_forced_curves_show_accuracy_at_each_budget_and_what_it_costs(section: Section) -> None:
    _, by_budget, by_length = main_charts(section, "s1")
    assert [(row[0], row[1], row[4]) for row in by_budget.rows] == [(16, 0.5, None), (64, 1.0, 1.0)]
    assert [(row[0], row[1], row[4]) for row in by_length.rows] == [(20, 0.5, None), (30, None, 1.0), (70, 1.0, None)]
    plain = section_of({"base": BASE, "short": SHORT})
    assert [chart.name for chart in main_charts(plain, "s1")] == ["s1-budget"]


def test_lengths_are_drawn_in_tokens_and_their_two_parts(section: Section) -> None:
    total, thinking, answer = length_charts(section, "s1")
    assert (total.name, thinking.name, answer.name) == ("s1-lengths", "s1-thinking", "s1-answers")
    assert [row[1:] for row in answer.rows] == [(1.0, 1.0)]
    assert float(str(thinking.rows[-1][0]).split(" to ")[0]) < 495 < float(str(thinking.rows[-1][0]).split(" to ")[1])


def test_shows_the_questions_that_moved_most_with_both_sides(page: Page) -> None:
    section = page.sections["s1"]
    assert section.index("What is p4?") < section.index("What is p1?")
    assert "base: 0 %, 500 tokens" in section and "short: 50 %, 90 tokens" in section


def test_tells_what_was_compared_and_what_to_beware_of(page: Page) -> None:
    assert "Only 4 problems: <rough>." in page.sections["s1"]
    assert "aime24 is left out." in page.text
    assert "models/base" in page.sections["s1"] and "models/short" in page.sections["s1"]
    assert "4 problems, the same for all models, 32 completions in all. AUC over 1,000 tokens." in page.sections["s1"]


def test_unknown_figures_are_dashes() -> None:
    alone = section_of({"base": {"p1": [-10]}, "short": {"p1": [-10]}})
    page = page_of(alone)
    header, base, _ = page.tables["s1-models"]
    figures = dict(zip(header, base, strict=True))
    assert (figures["accuracy %"], figures["Len-T"], figures["Len-A"]) == ("0.0", "–", "10.0")
    assert dict(zip(*page.tables["s1-changes"], strict=True))["p"] == "–"
    assert "Every model is right equally often on every problem." in page.text
    assert "nan" not in page.text.lower()


def test_two_sections_share_no_ids_and_every_element_is_closed(section: Section) -> None:
    page = page_of(section, replace(section, title="aime24, greedy"))
    assert len(page.ids) == len(set(page.ids))
    assert page.unclosed == []
    assert {"s1", "s2"} <= set(page.ids)
    referenced = {target[1:] for target in page.targets if target.startswith("#")}
    referenced |= set(re.findall(r"url\(#([^)]+)\)", page.html)) | set(re.findall(r'aria-labelledby="([^"]+)"', page.html))
    assert referenced <= set(page.ids)


def test_loads_nothing_from_anywhere(page: Page) -> None:
    assert not re.search(r"https?://|@import", page.html)
    assert all(target.startswith(("#", "data:")) for target in page.targets)
    assert {"script", "iframe", "img", "object"}.isdisjoint(page.tags)


def test_text_of_a_model_or_problem_is_text_and_never_markup() -> None:
    evil = section_of({EVIL: BASE, "a$b_$^": SHORT, "_hidden": SHORT}, question=EVIL, warnings=[EVIL])
    page = page_of(evil, notes=[EVIL])
    assert {"script", "img"}.isdisjoint(page.tags)
    assert EVIL in page.text and "a$b_$^" in page.text
    legend = re.findall(r"<text[^>]*>([^<]*)</text>", main_charts(evil, "s1")[0].svg)
    assert "a$b_$^" in legend and any(text.strip() == "_hidden" for text in legend)


def test_more_models_than_colours_are_told_apart_by_dashes(page: Page) -> None:
    many = section_of({f"model {i}": BASE if i % 2 else SHORT for i in range(10)})
    svg = main_charts(many, "s1")[0].svg
    colours = set(re.findall(r"stroke: var\(--(\w+)\)", svg)) - {"grid", "muted", "ink"}
    assert len(colours) == 8
    assert len(re.findall(r"stroke-dasharray", svg)) == 4  # two curves and their entries in the legend
    assert all(f"--{colour}:" in page.html for colour in colours)


def test_the_same_comparison_is_the_same_bytes(section: Section, page: Page) -> None:
    assert page_of(section, notes=["aime24 is left out."]).html == page.html


def test_stays_small_for_many_long_problems() -> None:
    first = {f"p{i:03d}": [1000 + 70 * i, -1000 - 11 * i, 500, 2000] for i in range(200)}
    second = {name: [own[0] // 2, -own[1], -500, 900] for name, own in first.items()}
    long = section_of({"base": first, "short": second}, question="why? " * 5000)
    assert len(comparison_html(Comparison([long], "0.1.0")).encode()) < 400_000

"""One self-contained HTML page about models on the same problems: which is right more often, and at what length.

Nothing is loaded from anywhere, so the page works offline and can be mailed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokensqueeze.metrics.difficulty import DifficultyBin
from tokensqueeze.reporting.charts import Chart
from tokensqueeze.reporting.comparison_charts import colour_of, difficulty_charts, length_charts, level_charts, main_charts
from tokensqueeze.reporting.comparison_data import Comparison, Section
from tokensqueeze.reporting.comparison_table import (
    CHANGE_LEGEND,
    MODEL_LEGEND,
    Figure,
    change_headers,
    change_rows,
    model_headers,
    model_rows,
)
from tokensqueeze.reporting.page import page_environment
from tokensqueeze.reporting.wording import PASS_RATES, counted, number, p_value, percent, points
from tokensqueeze.tables import write_text

_LONGEST_QUESTION = 1500
# A p-value above this is not called a difference.
_NOTABLE = 0.05


@dataclass(frozen=True)
class Moved:
    """One problem of those that moved most; a pass rate and a length per model."""

    question: str
    pass_rates: list[str]
    lengths: list[str]


@dataclass(frozen=True)
class Binned:
    """Problems of one difficulty: accuracy and tokens per model."""

    label: str
    num_problems: int
    figures: list[str]


@dataclass(frozen=True)
class PageSection:
    """One section as the template wants it."""

    anchor: str
    title: str
    lead: str
    verdicts: list[str]
    warnings: list[str]
    names: list[str]
    colours: list[str]
    model_headers: list[str]
    model_rows: list[list[Figure]]
    change_headers: list[str]
    change_rows: list[list[Figure]]
    main_charts: list[Chart]
    length_charts: list[Chart]
    difficulty: list[Binned]
    difficulty_charts: list[Chart]
    difficulty_note: str
    levels: list[Binned]
    level_charts: list[Chart]
    moved: list[Moved]
    settings: list[tuple[str, list[str]]]


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the page, whole or not at all. Raises `StorageError` where the path can't be written."""
    write_text(path, comparison_html(comparison))


def comparison_html(comparison: Comparison) -> str:
    """Return the page; the same data give the same text."""
    names = list(dict.fromkeys(model.name for section in comparison.sections for model in section.models))
    return (
        page_environment()
        .get_template("comparison.html.j2")
        .render(
            title=f"{names[0]} against {names[1] if len(names) == 2 else f'{len(names) - 1} others'}",
            sections=[_page_section(section, f"s{index}") for index, section in enumerate(comparison.sections, 1)],
            notes=comparison.notes,
            version=comparison.version,
            model_legend=MODEL_LEGEND,
            change_legend=CHANGE_LEGEND,
        )
    )


def verdicts(section: Section) -> list[str]:
    """Say of each model but the first what the tests allow to say, and no more."""
    said = []
    for model, against in zip(section.models[1:], section.against_first, strict=True):
        change = against.change
        length = f"{percent(change.length_ratio, 0)} of the tokens{_doubt(against.length_holm)}"
        accuracy = f"{points(change.accuracy)} of accuracy{_doubt(against.accuracy_holm)}"
        said.append(f"{model.name}: {length}, {accuracy}, {points(change.auc)} of AUC{_doubt(against.auc_holm)}.")
    return said


def _doubt(p: float | None) -> str:
    if p is None:
        return " (one problem: no test)"
    return f" (p {'' if p < 0.001 else '= '}{p_value(p)})" if p <= _NOTABLE else f" (could be chance: p = {p_value(p)})"


def _page_section(section: Section, prefix: str) -> PageSection:
    first = section.cells[0]
    return PageSection(
        anchor=prefix,
        title=section.title,
        lead=f"{counted(first.num_problems, 'problem')}, the same for all models, "
        f"{counted(sum(cell.num_samples for cell in section.cells), 'completion')} in all. "
        f"AUC over {section.token_budget:,} tokens.",
        verdicts=verdicts(section),
        warnings=list(section.warnings),
        names=[model.name for model in section.models],
        colours=[colour_of(index) for index in range(len(section.models))],
        model_headers=model_headers(section),
        model_rows=model_rows(section),
        change_headers=change_headers(section),
        change_rows=change_rows(section),
        main_charts=main_charts(section, prefix),
        length_charts=length_charts(section, prefix),
        difficulty=_binned(section.difficulty or [], PASS_RATES),
        difficulty_charts=difficulty_charts(section, prefix),
        difficulty_note=_difficulty_note(section),
        levels=_binned(section.levels, {}),
        level_charts=level_charts(section, prefix),
        moved=_moved(section),
        settings=_settings(section),
    )


def _difficulty_note(section: Section) -> str:
    name = section.models[0].name
    if section.difficulty is None:
        return (
            f"{name} has one sample of some problem: its pass rate would sort the problems by the very luck that is then "
            "measured. With two samples or more, one half sorts and the other is measured."
        )
    return (
        f"Problems are sorted by every second sample of {name}, and all models are measured on the others only: problems that "
        f"came out right did so partly by luck, and on the same samples {name} would look too good on the easy ones and too "
        "bad on the hard."
    )


def _binned(by_model: Sequence[Sequence[DifficultyBin]], words: Mapping[str, str]) -> list[Binned]:
    return [
        Binned(
            words.get(bins[0].label) or bins[0].label,
            bins[0].num_problems,
            [f"{100 * bin.accuracy:.1f} %, {number(bin.length)}" for bin in bins],
        )
        for bins in zip(*by_model, strict=True)
    ]


def _moved(section: Section) -> list[Moved]:
    problems = section.problems or {}

    def question(problem_id: str) -> str:
        text = problems[problem_id].question if problem_id in problems else problem_id
        return text if len(text) <= _LONGEST_QUESTION else f"{text[:_LONGEST_QUESTION]} …"

    return [
        Moved(
            question(one.problem_id), [percent(rate, 0) for rate in one.pass_rates], [number(length) for length in one.lengths]
        )
        for one in section.largest_changes
    ]


def _settings(section: Section) -> list[tuple[str, list[str]]]:
    """Return a row per setting that some model has, a column per model."""
    keys = dict.fromkeys(key for model in section.models for key in model.settings)
    return [(key, [model.settings.get(key, "–") for model in section.models]) for key in keys]

"""A comparison as tables, the same figures in the terminal and on the page: each model, and each against the first."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tokensqueeze.metrics.comparison import AgainstFirst
from tokensqueeze.metrics.evaluation import Cell
from tokensqueeze.reporting.comparison_data import Section
from tokensqueeze.reporting.wording import interval, number_at, p_value, percent, signed

MODEL_LEGEND = (
    "Below a figure: its 95 % interval, over problems. pass@k: at least one of k samples is right. Len-T: mean tokens of the "
    "correct completions, Len-A: of all, in each model's own tokens. AUC: area under accuracy against token budget."
)
CHANGE_LEGEND = (
    "Paired by problem. p: how often chance alone would give such a difference or a larger one (sign-flip test, two-sided); "
    "Holm: adjusted for all models compared."
)


@dataclass(frozen=True)
class Figure:
    """One cell: the figure, and its interval where one is known."""

    value: str
    interval: str = ""


def model_headers(section: Section) -> list[str]:
    shown = _shown_k(section)
    return [
        "",
        "accuracy %",
        *(f"pass@{k} %" for k in shown),
        "Len-T",
        "Len-A",
        "thinking",
        "answer",
        "truncated",
        "unverifiable",
        "AUC %",
    ]


def model_rows(section: Section) -> list[list[Figure]]:
    """Return a row per model, in the order given."""
    shown = _shown_k(section)
    return [[Figure(model.name), *_cell(cell, shown)] for model, cell in zip(section.models, section.cells, strict=True)]


def change_headers(section: Section) -> list[str]:
    headers = [f"against {section.models[0].name}", "accuracy, points", "p", "tokens, ×", "p", "AUC, points", "p"]
    if len(section.models) == 2:
        return headers
    return [column for header in headers for column in ((header, "p, Holm") if header == "p" else (header,))]


def change_rows(section: Section) -> list[list[Figure]]:
    """Return a row per model but the first; Holm's p-values only where there are several."""
    return [
        [Figure(model.name), *_change(against, several=len(section.models) > 2)]
        for model, against in zip(section.models[1:], section.against_first, strict=True)
    ]


def section_table(section: Section) -> Table:
    """Lay a section out for a terminal: a column per model, its figures and below them what sets it off from the first."""
    table = Table(title=Text(section.title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # A narrow terminal folds a figure over two lines; an ellipsis would hide what the table is there for.
    for name in ("", *(model.name for model in section.models)):
        table.add_column(Text(name), justify="right" if name else "left", overflow="fold")
    rows = _turned(model_headers(section), model_rows(section))
    changes = _turned(change_headers(section), change_rows(section))
    for index, (header, *cells) in enumerate(rows):
        table.add_row(Text(header), *map(_lines, cells), end_section=index == len(rows) - 1)
    table.add_row(Text("against the first"), style="bold")
    for header, *cells in changes:
        table.add_row(Text(header), "", *map(_lines, cells))
    return table


def _shown_k(section: Section) -> list[str]:
    """Return a middle k and the largest that every model has; pass@1 is the accuracy."""
    shared = [k for k in section.cells[0].pass_at_k if k != "1" and all(k in cell.pass_at_k for cell in section.cells)]
    return [shared[len(shared) // 2 - 1], shared[-1]] if len(shared) > 2 else shared[-1:]


def _cell(cell: Cell, shown_k: Sequence[str]) -> list[Figure]:
    return [
        _share(cell.accuracy, cell.accuracy_ci),
        *(_share(cell.pass_at_k[k].value, cell.pass_at_k[k].ci) for k in shown_k),
        _tokens(cell.length_correct, cell.length_correct_ci),
        _tokens(cell.length_all, cell.length_all_ci),
        _tokens(cell.thinking_length, cell.thinking_length_ci),
        _tokens(cell.answer_length, cell.answer_length_ci),
        Figure(percent(cell.truncated), interval(cell.truncated_ci, scale=100)),
        Figure(percent(cell.unverifiable)),
        _share(cell.auc, cell.auc_ci),
    ]


def _change(against: AgainstFirst, *, several: bool) -> list[Figure]:
    change = against.change

    def ps(p: float | None, adjusted: float | None) -> list[Figure]:
        return [Figure(p_value(p)), *([Figure(p_value(adjusted))] if several else [])]

    return [
        Figure(signed(100 * change.accuracy), interval(change.accuracy_ci, scale=100, sign=True)),
        *ps(change.accuracy_p, against.accuracy_holm),
        Figure(number_at(change.length_ratio, 3), interval(change.length_ratio_ci, decimals=3)),
        *ps(change.length_p, against.length_holm),
        Figure(signed(100 * change.auc), interval(change.auc_ci, scale=100, sign=True)),
        *ps(change.auc_p, against.auc_holm),
    ]


def _share(share: float, edges: Sequence[float] | None) -> Figure:
    return Figure(f"{100 * share:.1f}", interval(edges, scale=100))


def _tokens(length: float | None, edges: Sequence[float] | None) -> Figure:
    if length is None:
        return Figure("–")
    decimals = 0 if length >= 1000 else 1
    return Figure(number_at(length, decimals), interval(edges, decimals=decimals))


def _turned(headers: Sequence[str], rows: Sequence[Sequence[Figure]]) -> list[tuple[str, *tuple[Figure, ...]]]:
    """Return columns as rows, without the models' names."""
    return [(header, *column) for header, *column in zip(headers[1:], *(row[1:] for row in rows), strict=True)]


def _lines(figure: Figure) -> Text:
    """Return a figure with its interval below. A name is text, whatever brackets it has."""
    return Text(f"{figure.value}\n{figure.interval}" if figure.interval else figure.value)
